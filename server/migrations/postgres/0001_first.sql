-- Column for column the same as ../sqlite/0001_first.sql; a test compares them.

-- Who was heard of.
create table devices (
    device       text not null primary key,
    first_seen   timestamptz not null,
    last_seen    timestamptz not null,
    latest_run   uuid,                        -- of the newest live record
    plain        bigint not null default 0,  -- readings without run and seq
    rubbish      bigint not null default 0,  -- messages, or parts of one, that were no records
    online       boolean,                     -- as its status topic says; null: not known
    online_since timestamptz,                        -- when this server first heard so
    state        text,                        -- its retained state, as it came
    state_at     timestamptz                         -- when this server heard it
);

-- The account of each run: received + deleted + lost + missing = 1..last.
create table runs (
    device           text not null,
    run              uuid not null,
    ordinal          bigint not null,            -- the how manieth run of the device here: 1, 2, 3 ...
    first_seen       timestamptz not null,
    last             bigint not null default 0,  -- the highest seq known to have been used
    received         bigint not null default 0,  -- rows in records
    twice            bigint not null default 0,  -- arrivals of a record that was there already
    lost             bigint not null default 0,  -- given up by the device, told, and not received all the same
    deleted          bigint not null default 0,  -- received, kept as long as wanted, deleted
    lost_told        bigint not null default 0,  -- how many the device has told as lost
    lost_ranges      text not null default '[]',  -- where, as [[from, to], ...]
    lost_received    bigint not null default 0,  -- how many of these ranges were received all the same
    deleted_ranges   text not null default '[]',
    primary key (device, run)
);

-- Each record once.
create table records (
    device      text not null,
    run         uuid not null,
    seq         bigint not null,
    ts          timestamptz,               -- when it was made, as far as it tells
    clock       text,               -- what ts is worth: synced, corrected, unsynced
    kind        text not null,      -- reading, or the name of the event
    light       double precision,
    led_on      boolean,
    by          text,               -- who decided about the LED
    why         text,
    received_at timestamptz not null,
    payload     text not null,      -- the record as it came
    primary key (device, run, seq)
);

create index records_by_time on records (device, ts);

-- What devices gave up, as they told it.
create table losses (
    device   text not null,
    of_run   uuid not null,
    from_seq bigint not null,
    to_seq   bigint not null,
    count    bigint not null,
    reason   text,
    told_at  timestamptz not null,
    primary key (device, of_run, from_seq, to_seq)
);

-- Outages that are over, as devices told them.
create table outages (
    device      text not null,
    run         uuid not null,
    seq         bigint not null,
    cause       text,               -- link or server
    began       timestamptz,
    ended       timestamptz,
    seconds     double precision,
    readings    bigint,
    events      bigint,
    led_changes bigint,
    lost        bigint,
    why         text,
    primary key (device, run, seq)
);

create index outages_by_time on outages (device, began);

-- The account of each device.
create view account as
select devices.device,
       cast(coalesce(sum(runs.received), 0) as bigint) as received,
       cast(coalesce(sum(runs.twice), 0) as bigint) as twice,
       cast(coalesce(sum(runs.lost), 0) as bigint) as lost,
       cast(coalesce(sum(runs.last - runs.received - runs.deleted - runs.lost), 0) as bigint) as missing,
       cast(coalesce(sum(runs.deleted), 0) as bigint) as deleted,
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
    select device, run, (range ->> 0)::bigint, (range ->> 1)::bigint
    from runs, json_array_elements(runs.deleted_ranges::json) as range
    union all
    select device, run, last + 1, last + 1 from runs
), ordered as (
    select device, run, from_seq,
           1 + coalesce(max(to_seq) over (
               partition by device, run order by from_seq, to_seq
               rows between unbounded preceding and 1 preceding), 0) as hole
    from covered
)
select device, run, hole as from_seq, from_seq - 1 as to_seq, 'missing' as what, null::text as reason
from ordered where hole < from_seq
union all
select device, of_run, from_seq, to_seq, 'lost', reason from losses;
