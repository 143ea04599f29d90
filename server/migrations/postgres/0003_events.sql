-- Column for column the same as ../sqlite/0003_events.sql; a test compares them.

-- The events of a device among its many readings.
create index records_events on records (device, ts) where kind <> 'reading';
