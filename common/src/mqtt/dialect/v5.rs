//! MQTT 5: rumqttc's codec for what has many properties; what has a reason is read here.
//!
//! The codec knows reason codes as closed lists, and ends the session for one that is not on them; it waits for
//! more bytes of a packet that is complete and short, as mosquitto's refusal (`20 02 00 01`) and its goodbye
//! (`E0 01 8E`) are. A reason is one byte behind the packet id, so it is read without the codec.

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::QoS;
use rumqttc::mqttbytes::Error;
use rumqttc::v5::mqttbytes::v5::{
    self, ConnAck, ConnAckProperties, ConnectProperties, Filter, FixedHeader, LastWill,
    LastWillProperties, Login, Packet, PublishProperties,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS as CodecQos};

use crate::mqtt::packet::{About, Connect, Greeting, Incoming, Outgoing, Publication, Said};
use crate::mqtt::terms::{Terms, Version};

/// A broker's own words are cut there.
const MOST_WORDS: usize = 200;
/// The properties that lead to the reason string: itself, and a pair of strings of the user.
const REASON_STRING: u8 = 0x1f;

/// One packet out of a whole frame, whose fixed header has `head` bytes.
pub(super) fn read(frame: BytesMut, head: usize) -> Result<Incoming, Error> {
    let frame = frame.freeze();
    let first = frame[0];
    let mut body = frame.slice(head..);
    let fixed = || FixedHeader::new(first, head - 1, frame.len() - head);
    Ok(match first >> 4 {
        2 => Incoming::ConnAck(greeting(frame.clone(), fixed(), body)?),
        3 => {
            let publish = v5::Publish::read(fixed(), frame.clone()).map_err(malformed)?;
            Incoming::Publish(publication(publish)?)
        }
        kind @ (4..=7) => {
            let pkid = number(&mut body)?;
            let said = said(&mut body)?;
            match kind {
                4 => Incoming::PubAck(pkid, said),
                5 => Incoming::PubRec(pkid, said),
                6 => Incoming::PubRel(pkid),
                _ => Incoming::PubComp(pkid),
            }
        }
        9 => {
            let pkid = number(&mut body)?;
            let words = words(&mut body)?;
            let each = |code: &u8| Said {
                code: *code,
                words: words.clone(),
            };
            match body.is_empty() {
                true => return Err(Error::MalformedPacket),
                false => Incoming::SubAck(pkid, body.iter().map(each).collect()),
            }
        }
        13 => Incoming::PingResp,
        14 => Incoming::Disconnect(said(&mut body)?),
        kind => return Err(Error::InvalidPacketType(kind)),
    })
}

/// A broker of 3.1.1 answers CONNECT in its own way: two bytes, no properties.
fn greeting(frame: Bytes, fixed: FixedHeader, mut body: Bytes) -> Result<Greeting, Error> {
    let (Some(flags), Some(code)) = (body.first().copied(), body.get(1).copied()) else {
        return Err(Error::MalformedPacket);
    };
    let session_present = flags & 1 == 1;
    if body.len() == 2 {
        let code = match code {
            0 | 0x80.. => code,
            1 => 0x84,
            2 => 0x85,
            3 => 0x88,
            4 => 0x86,
            5 => 0x87,
            other => return Err(Error::InvalidConnectReturnCode(other)),
        };
        return Ok(Greeting {
            said: Said::new(code),
            session_present,
            terms: Terms::new(Version::V311),
        });
    }
    if code != 0 {
        body.advance(1);
        return Ok(Greeting {
            said: said(&mut body)?,
            session_present,
            terms: Terms::new(Version::V5),
        });
    }
    let ack = ConnAck::read(fixed, frame).map_err(malformed)?;
    let mut terms = Terms::new(Version::V5);
    if let Some(offered) = ack.properties {
        take(&mut terms, &offered)?;
    }
    Ok(Greeting {
        said: Said::new(0),
        session_present,
        terms,
    })
}

fn take(terms: &mut Terms, offered: &ConnAckProperties) -> Result<(), Error> {
    let seconds = |seconds: u32| std::time::Duration::from_secs(seconds.into());
    terms.session_expiry = offered.session_expiry_interval.map(seconds);
    terms.keep_alive = offered.server_keep_alive.map(|it| seconds(it.into()));
    if let Some(most) = offered.receive_max {
        terms.receive_max = most;
    }
    terms.max_packet = offered.max_packet_size;
    if let Some(qos) = offered.max_qos {
        terms.max_qos = qos;
    }
    let is_there = |flag: Option<u8>| flag != Some(0);
    terms.retain = is_there(offered.retain_available);
    terms.wildcards = is_there(offered.wildcard_subscription_available);
    terms.shared = is_there(offered.shared_subscription_available);
    // The standard allows neither of them to be nothing.
    match terms.receive_max == 0 || terms.max_packet == Some(0) {
        true => Err(Error::MalformedPacket),
        false => Ok(()),
    }
}

fn publication(publish: v5::Publish) -> Result<Publication, Error> {
    let topic = String::from_utf8(publish.topic.into()).map_err(|_| Error::TopicNotUtf8)?;
    let about = publish.properties.map(|properties| About {
        expiry: properties.message_expiry_interval,
        content_type: properties.content_type,
        response_topic: properties.response_topic,
        correlation: properties.correlation_data,
    });
    Ok(Publication {
        topic,
        payload: publish.payload,
        qos: match publish.qos {
            CodecQos::AtMostOnce => QoS::AtMostOnce,
            CodecQos::AtLeastOnce => QoS::AtLeastOnce,
            CodecQos::ExactlyOnce => QoS::ExactlyOnce,
        },
        retain: publish.retain,
        pkid: publish.pkid,
        about: about.unwrap_or_default(),
    })
}

/// A reason and its words; both may be left out.
fn said(body: &mut Bytes) -> Result<Said, Error> {
    if body.is_empty() {
        return Ok(Said::new(0));
    }
    let code = body.get_u8();
    let words = match body.is_empty() {
        true => None,
        false => words(body)?,
    };
    Ok(Said { code, words })
}

/// The reason string among the properties, which end where they say.
fn words(body: &mut Bytes) -> Result<Option<String>, Error> {
    let Some((of_length, length)) = super::length(body)? else {
        return Err(Error::MalformedRemainingLength);
    };
    body.advance(of_length);
    if length > body.len() {
        return Err(Error::BoundaryCrossed(length));
    }
    let mut properties = body.split_to(length);
    let mut found = None;
    // Only strings come here in front of it; whatever else a broker adds hides the words, no more.
    while let Some(kind @ (REASON_STRING | 0x26 | 0x1c)) = properties.first().copied() {
        properties.advance(1);
        let strings = if kind == 0x26 { 2 } else { 1 };
        for _ in 0..strings {
            let length = usize::from(number(&mut properties)?);
            if length > properties.len() {
                return Err(Error::BoundaryCrossed(length));
            }
            let text = properties.split_to(length);
            if kind == REASON_STRING {
                found = Some(printable(&text));
            }
        }
    }
    Ok(found)
}

/// What a terminal and a log can show, and not too much of it.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MOST_WORDS).map(shown).collect()
}

fn number(body: &mut Bytes) -> Result<u16, Error> {
    match body.len() {
        0 | 1 => Err(Error::MalformedPacket),
        _ => Ok(body.get_u16()),
    }
}

/// CONNECT; `to` is empty, because the codec writes its flags at a place counted from the beginning.
pub(super) fn connect(connect: &Connect<'_>, to: &mut BytesMut) -> Result<usize, Error> {
    let mut packet = BytesMut::new();
    let properties = ConnectProperties {
        session_expiry_interval: Some(connect.session_expiry),
        receive_maximum: None,
        max_packet_size: None,
        topic_alias_max: None,
        request_response_info: None,
        request_problem_info: None,
        user_properties: Vec::new(),
        authentication_method: None,
        authentication_data: None,
    };
    let will = connect.will.map(|will| LastWill {
        topic: Bytes::copy_from_slice(will.topic.as_bytes()),
        message: Bytes::copy_from_slice(will.payload.as_bytes()),
        qos: match will.is_sure {
            true => CodecQos::AtLeastOnce,
            false => CodecQos::AtMostOnce,
        },
        retain: will.retain,
        properties: Some(LastWillProperties {
            delay_interval: Some(will.delay),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        }),
    });
    let login = connect.login.map(|(username, password)| Login {
        username: username.clone(),
        password: password.clone(),
    });
    let whole = v5::Connect {
        keep_alive: connect.keep_alive,
        client_id: connect.client_id.to_owned(),
        clean_start: connect.clean,
        properties: Some(properties),
    };
    let bytes = Packet::Connect(whole, will, login)
        .write(&mut packet, None)
        .map_err(malformed)?;
    to.extend_from_slice(&packet);
    Ok(bytes)
}

pub(super) fn publish(publication: Publication, to: &mut BytesMut) -> Result<usize, Error> {
    packet_of(publication).write(to).map_err(malformed)
}

/// How many bytes the packet has behind its fixed header.
pub(super) fn size(publication: &Publication) -> usize {
    let pkid = if publication.qos == QoS::AtMostOnce {
        0
    } else {
        2
    };
    let About {
        expiry,
        content_type,
        response_topic,
        correlation,
    } = &publication.about;
    let text = |length: Option<usize>| length.map_or(0, |length| 3 + length);
    let properties = expiry.map_or(0, |_| 5)
        + text(content_type.as_ref().map(String::len))
        + text(response_topic.as_ref().map(String::len))
        + text(correlation.as_ref().map(Bytes::len));
    let of_length = super::length_of(properties);
    2 + publication.topic.len() + pkid + of_length + properties + publication.payload.len()
}

fn packet_of(publication: Publication) -> v5::Publish {
    let About {
        expiry,
        content_type,
        response_topic,
        correlation,
    } = publication.about;
    let is_bare = expiry.is_none()
        && content_type.is_none()
        && response_topic.is_none()
        && correlation.is_none();
    let properties = (!is_bare).then(|| PublishProperties {
        message_expiry_interval: expiry,
        content_type,
        response_topic,
        correlation_data: correlation,
        ..PublishProperties::default()
    });
    v5::Publish {
        dup: false,
        qos: match publication.qos {
            QoS::AtMostOnce => CodecQos::AtMostOnce,
            QoS::AtLeastOnce => CodecQos::AtLeastOnce,
            QoS::ExactlyOnce => CodecQos::ExactlyOnce,
        },
        retain: publication.retain,
        topic: publication.topic.into(),
        pkid: publication.pkid,
        payload: publication.payload,
        properties,
    }
}

pub(super) fn write(packet: &Outgoing<'_>, to: &mut BytesMut) -> Result<usize, Error> {
    let written = match packet {
        Outgoing::Subscribe(pkid, filters) => {
            let filters = filters.iter();
            let filters = filters.map(|filter| Filter::new(filter.clone(), CodecQos::AtLeastOnce));
            let mut packet = v5::Subscribe::new_many(filters, None);
            packet.pkid = *pkid;
            packet.write(to).map_err(malformed)?
        }
        // With success as their reason, both versions write these alike.
        other => super::v4::write(other, to)?,
    };
    Ok(written)
}

/// The frame was whole: whatever the codec still misses in it will not come.
fn malformed(error: CodecError) -> Error {
    match error {
        CodecError::InvalidQoS(qos) => Error::InvalidQoS(qos),
        CodecError::PacketIdZero => Error::PacketIdZero,
        CodecError::BoundaryCrossed(length) => Error::BoundaryCrossed(length),
        CodecError::InvalidPropertyType(kind) => Error::InvalidPropertyType(kind),
        _ => Error::MalformedPacket,
    }
}
