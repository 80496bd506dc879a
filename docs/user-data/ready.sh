#!/bin/sh
# Sets the guest up, and reports it as ready in words of its own, with the fingerprints of its ssh host keys. With a session token,
# so that it works under every kind of metadata access but "off".
set -eu

# … what makes the guest what it should be …

metadata=http://169.254.169.254
token=$(curl -fsS --retry 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token")
keys=$(awk '{ printf "%s\"%s %s\"", comma, $1, $2; comma = ", " }' /etc/ssh/ssh_host_*_key.pub)
curl -fsS --retry 5 -H "X-aws-ec2-metadata-token: $token" -H 'Content-Type: application/json' \
  -d "{\"message\": \"set up\", \"host_keys\": [$keys]}" "$metadata/etcd-compute/v1/ready"
