"""The command line and library that ask for instances: Placement finds and claims a host, etcd carries the request."""
