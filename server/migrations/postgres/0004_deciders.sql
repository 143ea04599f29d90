-- Column for column the same as ../sqlite/0004_deciders.sql; a test compares them.

-- Servers that are there.
create table servers (
    server text not null primary key,
    until  timestamptz not null           -- there until then, by the database's clock, unless it says so again
);

-- Who decides: devices and groups are spread over 64 parts by a hash of their names.
create table deciders (
    part   bigint not null primary key,
    server text not null,
    until  timestamptz not null           -- then another one may take it
);
