-- Column for column the same as ../postgres/0002_switches.sql; a test compares them.

-- LEDs that are switched by hand, until told otherwise.
create table switches (
    kind   text not null,     -- device or group
    name   text not null,     -- its id or name
    led_on integer not null,
    set_at text not null,
    primary key (kind, name)
) strict, without rowid;
