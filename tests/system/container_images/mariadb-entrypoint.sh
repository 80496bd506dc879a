#!/bin/bash
# What docker.sh relies on of the official image of MariaDB: passwords by files, a user and a database that are made at the
# first start, no TCP before it is ready.
set -euo pipefail
data=/var/lib/mysql
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$data" /run/mysqld
  chown -R mysql "$data" /run/mysqld
  exec gosu mysql "$0" "$@"
fi
if [ ! -d "$data/mysql" ]; then
  mariadb-install-db --datadir="$data" --auth-root-authentication-method=normal --skip-test-db >/dev/null
  mariadbd --no-defaults --datadir="$data" --skip-networking --socket=/run/mysqld/first.sock &
  until mariadb --no-defaults --socket=/run/mysqld/first.sock -u root -e 'SELECT 1' >/dev/null 2>&1; do sleep 0.2; done
  mariadb --no-defaults --socket=/run/mysqld/first.sock -u root <<SQL
CREATE DATABASE $MARIADB_DATABASE;
CREATE USER $MARIADB_USER@'%' IDENTIFIED BY '$(cat "$MARIADB_PASSWORD_FILE")';
GRANT ALL ON $MARIADB_DATABASE.* TO $MARIADB_USER@'%';
ALTER USER root@localhost IDENTIFIED BY '$(cat "$MARIADB_ROOT_PASSWORD_FILE")';
SQL
  kill %1
  wait
fi
program=$1
shift
exec "$program" --no-defaults --datadir="$data" --socket=/run/mysqld/mysqld.sock "$@"
