//! MQTT 5: rumqttc's codec writes it; what comes in is read here.
//!
//! The codec knows reason codes as closed lists, and ends the session for one that is not on them; it waits for
//! more bytes of a packet that is complete and short, as mosquitto's refusal (`20 02 00 01`) and its goodbye
//! (`E0 01 8E`) are; and it reads properties beyond their end.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rumqttc::QoS;
use rumqttc::mqttbytes::Error;
use rumqttc::v5::mqttbytes::v5::{
    self, ConnectProperties, Filter, LastWill, LastWillProperties, Login, Packet,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS as CodecQos};

use super::properties::{Properties, Value, text};
use crate::mqtt::packet::{About, Connect, Greeting, Incoming, Outgoing, Publication, Said};
use crate::mqtt::terms::{Terms, Version};

/// A broker's own words are cut there.
const MOST_WORDS: usize = 200;
/// The property with them.
const REASON_STRING: u8 = 0x1f;
/// The longest that four bytes of seven bits tell.
const MAX_LENGTH: usize = 268_435_455;

/// One packet out of a whole frame, whose fixed header has `head` bytes.
pub(super) fn read(frame: BytesMut, head: usize) -> Result<Incoming, Error> {
    if let Some(answer) = plain_answer(&frame) {
        return Ok(answer);
    }
    let mut body = frame.freeze();
    let first = body[0];
    body.advance(head);
    Ok(match first >> 4 {
        2 => Incoming::ConnAck(greeting(body)?),
        3 => Incoming::Publish(publication(first, body)?),
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

/// An answer without properties, as most are: each record has one.
fn plain_answer(frame: &[u8]) -> Option<Incoming> {
    let (first, pkid, code) = match *frame {
        [first, 2, high, low] => (first, [high, low], 0),
        [first, 3, high, low, code] => (first, [high, low], code),
        _ => return None,
    };
    let (pkid, said) = (u16::from_be_bytes(pkid), Said::new(code));
    match first >> 4 {
        4 => Some(Incoming::PubAck(pkid, said)),
        5 => Some(Incoming::PubRec(pkid, said)),
        _ => None,
    }
}

/// A broker of 3.1.1 answers CONNECT in its own way: two bytes, no properties.
fn greeting(mut body: Bytes) -> Result<Greeting, Error> {
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
    body.advance(1);
    let mut terms = Terms::new(Version::V5);
    let said = match code {
        0 => {
            body.advance(1);
            take(&mut terms, Properties::cut_off(&mut body)?)?;
            Said::new(0)
        }
        _ => said(&mut body)?,
    };
    Ok(Greeting {
        said,
        session_present,
        terms,
    })
}

/// What the broker offers. One that says a thing twice means neither.
fn take(terms: &mut Terms, offered: Properties) -> Result<(), Error> {
    let mut seen = 0_u64;
    for property in offered {
        let (kind, value) = property?;
        let Value::Number(value) = value else {
            continue;
        };
        if seen & 1 << kind != 0 {
            return Err(Error::MalformedPacket);
        }
        seen |= 1 << kind;
        let seconds = Duration::from_secs(value.into());
        match (kind, u16::try_from(value)) {
            // The standard does not allow a limit of nothing.
            (0x21 | 0x27, Ok(0)) => return Err(Error::MalformedPacket),
            (0x11, _) => terms.session_expiry = Some(seconds),
            (0x13, _) => terms.keep_alive = Some(seconds),
            (0x21, Ok(most)) => terms.receive_max = most,
            (0x24, Ok(qos)) => terms.max_qos = qos.min(2) as u8,
            (0x25, is) => terms.retain = is != Ok(0),
            (0x27, _) => terms.max_packet = Some(value),
            (0x28, is) => terms.wildcards = is != Ok(0),
            (0x2a, is) => terms.shared = is != Ok(0),
            _ => {}
        }
    }
    Ok(())
}

/// What its sender says of it twice, or not in UTF-8, is not taken; it is no reason to leave the broker.
fn publication(first: u8, mut body: Bytes) -> Result<Publication, Error> {
    let qos = match first >> 1 & 3 {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        2 => QoS::ExactlyOnce,
        other => return Err(Error::InvalidQoS(other)),
    };
    let topic = text(&mut body)?;
    let topic = String::from_utf8(topic.into()).map_err(|_| Error::TopicNotUtf8)?;
    let pkid = match qos {
        QoS::AtMostOnce => 0,
        _ => number(&mut body)?,
    };
    if qos != QoS::AtMostOnce && pkid == 0 {
        return Err(Error::PacketIdZero);
    }
    let mut about = About::default();
    for property in Properties::cut_off(&mut body)? {
        let utf_8 = |bytes: Bytes| String::from_utf8(bytes.into()).ok();
        match property? {
            (0x02, Value::Number(seconds)) => about.expiry = about.expiry.or(Some(seconds)),
            (0x03, Value::Bytes(it)) => {
                about.content_type = about.content_type.or(utf_8(it).map(Cow::Owned))
            }
            (0x08, Value::Bytes(it)) => about.response_topic = about.response_topic.or(utf_8(it)),
            (0x09, Value::Bytes(it)) => about.correlation = about.correlation.or(Some(it)),
            // We take no topic alias.
            (0x23, _) if topic.is_empty() => return Err(Error::MalformedPacket),
            _ => {}
        }
    }
    Ok(Publication {
        topic,
        payload: body,
        qos,
        retain: first & 1 == 1,
        pkid,
        about,
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

/// The reason string among the properties, which end where they say. A property that nobody knows hides it, no more.
fn words(body: &mut Bytes) -> Result<Option<String>, Error> {
    let mut found = None;
    for property in Properties::cut_off(body)? {
        match property {
            Ok((REASON_STRING, Value::Bytes(text))) => found = Some(printable(&text)),
            Ok(_) | Err(Error::InvalidPropertyType(_)) => {}
            Err(error) => return Err(error),
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
        .map_err(unwritable)?;
    to.extend_from_slice(&packet);
    Ok(bytes)
}

/// PUBLISH, by hand: each record goes through here, and the codec makes a list of its properties first.
pub(super) fn publish(publication: &Publication, to: &mut BytesMut) -> Result<usize, Error> {
    let (before, rest) = (to.len(), size(publication));
    to.reserve(5 + rest);
    to.put_u8(0x30 | (publication.qos as u8) << 1 | u8::from(publication.retain));
    put_length(to, rest)?;
    put_text(to, publication.topic.as_bytes())?;
    match (publication.qos, publication.pkid) {
        (QoS::AtMostOnce, _) => {}
        (_, 0) => return Err(Error::PacketIdZero),
        (_, pkid) => to.put_u16(pkid),
    }
    let about = &publication.about;
    put_length(to, properties(about))?;
    if let Some(seconds) = about.expiry {
        to.put_u8(0x02);
        to.put_u32(seconds);
    }
    for (kind, text) in [
        (0x08, about.response_topic.as_ref().map(String::as_bytes)),
        (0x09, about.correlation.as_deref()),
        (0x03, about.content_type.as_ref().map(|it| it.as_bytes())),
    ] {
        if let Some(text) = text {
            to.put_u8(kind);
            put_text(to, text)?;
        }
    }
    to.extend_from_slice(&publication.payload);
    Ok(to.len() - before)
}

/// How many bytes the packet has behind its fixed header.
pub(super) fn size(publication: &Publication) -> usize {
    let pkid = if publication.qos == QoS::AtMostOnce {
        0
    } else {
        2
    };
    let properties = properties(&publication.about);
    let of_length = super::length_of(properties);
    2 + publication.topic.len() + pkid + of_length + properties + publication.payload.len()
}

/// Bytes of the properties, without their length.
fn properties(about: &About) -> usize {
    let text = |length: Option<usize>| length.map_or(0, |length| 3 + length);
    about.expiry.map_or(0, |_| 5)
        + text(about.content_type.as_ref().map(|it| it.len()))
        + text(about.response_topic.as_ref().map(String::len))
        + text(about.correlation.as_ref().map(Bytes::len))
}

fn put_length(to: &mut BytesMut, mut length: usize) -> Result<(), Error> {
    if length > MAX_LENGTH {
        return Err(Error::PayloadTooLong);
    }
    while length > 0x7f {
        to.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    to.put_u8(length as u8);
    Ok(())
}

fn put_text(to: &mut BytesMut, text: &[u8]) -> Result<(), Error> {
    let length = u16::try_from(text.len()).map_err(|_| Error::MalformedPacket)?;
    to.put_u16(length);
    to.extend_from_slice(text);
    Ok(())
}

pub(super) fn write(packet: &Outgoing<'_>, to: &mut BytesMut) -> Result<usize, Error> {
    let written = match packet {
        Outgoing::Subscribe(pkid, filters) => {
            let filters = filters.iter();
            let filters = filters.map(|filter| Filter::new(filter.clone(), CodecQos::AtLeastOnce));
            let mut packet = v5::Subscribe::new_many(filters, None);
            packet.pkid = *pkid;
            packet.write(to).map_err(unwritable)?
        }
        // With success as their reason, both versions write these alike.
        other => super::v4::write(other, to)?,
    };
    Ok(written)
}

fn unwritable(error: CodecError) -> Error {
    match error {
        CodecError::PayloadTooLong => Error::PayloadTooLong,
        CodecError::PacketIdZero => Error::PacketIdZero,
        _ => Error::MalformedPacket,
    }
}
