-- Times are text, RFC 3339 in UTC with milliseconds: they sort, and people can read them.
-- Column for column the same as ../postgres/0001_first.sql; a test compares them.

-- Who was heard of.
create table devices (
    device       text not null primary key,
    first_seen   text not null,
    last_seen    text not null,
    latest_run   text,                        -- of the newest live record
    plain        integer not null default 0,  -- readings without run and seq
    rubbish      integer not null default 0,  -- messages, or parts of one, that were no records
    online       integer,                     -- as its status topic says; null: not known
    online_since text,                        -- when this server first heard so
    state        text,                        -- its retained state, as it came
    state_at     text                         -- when this server heard it
) strict, without rowid;

-- The account of each run: received + deleted + lost + missing = 1..last.
create table runs (
    device           text not null,
    run              text not null,
    ordinal          integer not null,            -- the how manieth run of the device here: 1, 2, 3 ...
    first_seen       text not null,
    last             integer not null default 0,  -- the highest seq known to have been used
    received         integer not null default 0,  -- rows in records
    twice            integer not null default 0,  -- arrivals of a record that was there already
    lost             integer not null default 0,  -- given up by the device, told, and not received all the same
    deleted          integer not null default 0,  -- received, kept as long as wanted, deleted
    lost_told        integer not null default 0,  -- how many the device has told as lost
    lost_ranges      text not null default '[]',  -- where, as [[from, to], ...]
    lost_received    integer not null default 0,  -- how many of these ranges were received all the same
    deleted_ranges   text not null default '[]',
    primary key (device, run)
) strict, without rowid;

-- Each record once.
create table records (
    device      text not null,
    run         text not null,
    seq         integer not null,
    ts          text,               -- when it was made, as far as it tells
    clock       text,               -- what ts is worth: synced, corrected, unsynced
    kind        text not null,      -- reading, or the name of the event
    light       real,
    led_on      integer,
    by          text,               -- who decided about the LED
    why         text,
    received_at text not null,
    payload     text not null,      -- the record as it came
    primary key (device, run, seq)
) strict, without rowid;

create index records_by_time on records (device, ts);

-- What devices gave up, as they told it.
create table losses (
    device   text not null,
    of_run   text not null,
    from_seq integer not null,
    to_seq   integer not null,
    count    integer not null,
    reason   text,
    told_at  text not null,
    primary key (device, of_run, from_seq, to_seq)
) strict, without rowid;

-- Outages that are over, as devices told them.
create table outages (
    device      text not null,
    run         text not null,
    seq         integer not null,
    cause       text,               -- link or server
    began       text,
    ended       text,
    seconds     real,
    readings    integer,
    events      integer,
    led_changes integer,
    lost        integer,
    why         text,
    primary key (device, run, seq)
) strict, without rowid;

create index outages_by_time on outages (device, began);

-- The account of each device.
create view account as
select devices.device,
       cast(coalesce(sum(runs.received), 0) as integer) as received,
       cast(coalesce(sum(runs.twice), 0) as integer) as twice,
       cast(coalesce(sum(runs.lost), 0) as integer) as lost,
       cast(coalesce(sum(runs.last - runs.received - runs.deleted - runs.lost), 0) as integer) as missing,
       cast(coalesce(sum(runs.deleted), 0) as integer) as deleted,
       count(runs.run) as runs,
       devices.plain,
       devices.rubbish,
       devices.latest_run,
       devices.first_seen,
       devices.last_seen
from devices left join runs on runs.device = devices.device
group by devices.device;

-- The light over time.
create view readings as
select device, run, seq, ts, clock, light, led_on from records where kind = 'reading';

-- What of 1..last was not received: lost (the device told so) or missing.
create view gaps as
with covered as (
    select device, run, seq as from_seq, seq as to_seq from records
    union all
    select device, of_run, from_seq, to_seq from losses
    union all
    select device, run, json_extract(value, '$[0]'), json_extract(value, '$[1]')
    from runs, json_each(runs.deleted_ranges)
    union all
    select device, run, last + 1, last + 1 from runs
), ordered as (
    select device, run, from_seq,
           1 + coalesce(max(to_seq) over (
               partition by device, run order by from_seq, to_seq
               rows between unbounded preceding and 1 preceding), 0) as hole
    from covered
)
select device, run, hole as from_seq, from_seq - 1 as to_seq, 'missing' as what, null as reason
from ordered where hole < from_seq
union all
select device, of_run, from_seq, to_seq, 'lost', reason from losses;
