//! MQTT 3.1.1, by rumqttc's codec.

use bytes::BytesMut;
use rumqttc::mqttbytes::Error;
use rumqttc::mqttbytes::v4::{
    self, ConnectReturnCode, Packet, PubAck, PubComp, PubRec, PubRel, Subscribe, SubscribeFilter,
    SubscribeReasonCode,
};
use rumqttc::{LastWill, QoS};

use crate::mqtt::packet::{About, Connect, Greeting, Incoming, Outgoing, Publication, Said, Will};
use crate::mqtt::terms::{Terms, Version};

/// One packet out of a whole frame.
pub(super) fn read(frame: &mut BytesMut) -> Result<Incoming, Error> {
    let yes = Said::new(0);
    Ok(match Packet::read(frame, usize::MAX)? {
        Packet::ConnAck(ack) => Incoming::ConnAck(Greeting {
            said: Said::new(refusal(ack.code)),
            session_present: ack.session_present,
            terms: Terms::new(Version::V311),
        }),
        Packet::Publish(publish) => Incoming::Publish(Publication {
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            pkid: publish.pkid,
            about: About::default(),
        }),
        Packet::PubAck(ack) => Incoming::PubAck(ack.pkid, yes),
        Packet::PubRec(ack) => Incoming::PubRec(ack.pkid, yes),
        Packet::PubRel(ack) => Incoming::PubRel(ack.pkid),
        Packet::PubComp(ack) => Incoming::PubComp(ack.pkid),
        Packet::SubAck(ack) => {
            let said = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(qos) => Said::new(*qos as u8),
                SubscribeReasonCode::Failure => Said::new(0x80),
            };
            Incoming::SubAck(ack.pkid, ack.return_codes.iter().map(said).collect())
        }
        Packet::PingResp => Incoming::PingResp,
        _ => return Err(Error::MalformedPacket),
    })
}

/// The same as a reason code of MQTT 5.
pub(super) fn refusal(code: ConnectReturnCode) -> u8 {
    match code {
        ConnectReturnCode::Success => 0,
        ConnectReturnCode::RefusedProtocolVersion => 0x84,
        ConnectReturnCode::BadClientId => 0x85,
        ConnectReturnCode::ServiceUnavailable => 0x88,
        ConnectReturnCode::BadUserNamePassword => 0x86,
        ConnectReturnCode::NotAuthorized => 0x87,
    }
}

pub(super) fn connect(connect: &Connect<'_>, to: &mut BytesMut) -> Result<usize, Error> {
    let mut packet = v4::Connect::new(connect.client_id);
    packet.keep_alive = connect.keep_alive;
    packet.clean_session = connect.clean;
    packet.last_will = connect.will.map(|will: &Will| {
        let qos = match will.is_sure {
            true => QoS::AtLeastOnce,
            false => QoS::AtMostOnce,
        };
        LastWill::new(&will.topic, will.payload.as_str(), qos, will.retain)
    });
    packet.login = connect.login.map(|(username, password)| v4::Login {
        username: username.clone(),
        password: password.clone(),
    });
    packet.write(to)
}

pub(super) fn publish(publication: Publication, to: &mut BytesMut) -> Result<usize, Error> {
    packet_of(publication).write(to)
}

/// How many bytes the packet has.
pub(super) fn size(publication: &Publication) -> usize {
    let pkid = if publication.qos == QoS::AtMostOnce {
        0
    } else {
        2
    };
    2 + publication.topic.len() + pkid + publication.payload.len()
}

fn packet_of(publication: Publication) -> v4::Publish {
    let mut packet = v4::Publish::new("", publication.qos, publication.payload);
    packet.topic = publication.topic;
    packet.retain = publication.retain;
    packet.pkid = publication.pkid;
    packet
}

pub(super) fn write(packet: &Outgoing<'_>, to: &mut BytesMut) -> Result<usize, Error> {
    match packet {
        Outgoing::PubAck(pkid) => PubAck::new(*pkid).write(to),
        Outgoing::PubRec(pkid) => PubRec::new(*pkid).write(to),
        Outgoing::PubRel(pkid) => PubRel::new(*pkid).write(to),
        Outgoing::PubComp(pkid) => PubComp::new(*pkid).write(to),
        Outgoing::Subscribe(pkid, filters) => {
            let filters = filters.iter();
            let filters =
                filters.map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
            let mut packet = Subscribe::new_many(filters);
            packet.pkid = *pkid;
            packet.write(to)
        }
        Outgoing::PingReq => v4::PingReq.write(to),
        Outgoing::Disconnect => v4::Disconnect.write(to),
    }
}
