-- Column for column the same as ../postgres/0004_deciders.sql; a test compares them.

-- Servers that are there.
create table servers (
    server text not null primary key,
    until  text not null           -- there until then, by the database's clock, unless it says so again
) strict, without rowid;

-- Who decides: devices and groups are spread over 64 parts by a hash of their names.
create table deciders (
    part   integer not null primary key,
    server text not null,
    until  text not null           -- then another one may take it
) strict, without rowid;
