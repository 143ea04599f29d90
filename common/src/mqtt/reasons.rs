//! What a broker's reason means, in words a person can act on.
//!
//! Reason codes of MQTT 5 (section 2.4 of the standard); answers of 3.1.1 have become some of them before.

/// What the reason code means where a broker refuses or ends a session, refuses a subscription or a publication.
pub fn meaning(code: u8) -> &'static str {
    match code {
        0x00..=0x7f => "no reason",
        0x81 => "it takes a packet of ours for malformed",
        0x82 => "it takes a packet of ours for one that the protocol does not allow",
        0x83 => "it does not take this, for reasons of its own: look into its log",
        0x84 => "it does not speak this version of MQTT: set broker.version",
        0x85 => "it refuses the client id: check broker.client_id",
        0x86 => {
            "it refuses the user name or password: check broker.username and broker.password_file"
        }
        0x87 => {
            "not authorised: check broker.username, broker.password_file and the broker's access list"
        }
        0x88 => "it is there but says that it takes nobody now",
        0x89 => "it is too busy",
        0x8a => "it has banned this client: ask whoever runs it",
        0x8b => "it shuts down",
        0x8c => "it wants another way to authenticate than user name and password",
        0x8d => "it has heard nothing of us within broker.keep_alive",
        0x8e => {
            "another client has connected with our client id: each device needs its own device.id"
        }
        0x8f => "it does not take this topic filter: check the topics of the configuration",
        0x90 => "it does not take this topic name: check the topics of the configuration",
        0x91 => "it takes a packet id of ours for one in use",
        0x93 => "we sent more at a time than it takes: make delivery.window smaller",
        0x94 => "it takes a topic alias of ours for invalid",
        0x95 => "the packet is larger than it takes",
        0x96 => "we send too fast: set delivery.replay_rate, or a longer telemetry.interval",
        0x97 => "its quota for us is used up: it takes more later, or needs a larger quota",
        0x98 => "whoever runs it has ended the session",
        0x99 => "it does not take the payload",
        0x9a => "it keeps no retained messages",
        0x9b => "it does not have this quality of service: set delivery.qos",
        0x9c => "another server is to be used for now: ask whoever runs it, and set broker.url",
        0x9d => "the broker has moved: set broker.url",
        0x9e => "it has no shared subscriptions",
        0x9f => "connections are made too fast",
        0xa0 => "the longest time for a connection is over",
        0xa1 => "it has no subscription identifiers",
        0xa2 => "it has no subscriptions with wildcards",
        _ => "it does not say why: look into its log",
    }
}
