//! The properties of a packet of MQTT 5, one by one (section 2.2.2 of the standard).
//!
//! Read here and not by rumqttc's codec: that one reads a property beyond the end that the packet tells, and makes
//! a list of whatever a sender adds.

use bytes::{Buf, Bytes};
use rumqttc::mqttbytes::Error;

/// What is left of them.
pub(super) struct Properties(Bytes);

/// What one of them says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u32),
    /// A string or bytes.
    Bytes(Bytes),
    /// A pair of strings, of no use here.
    Pair,
}

impl Properties {
    /// Cuts the properties off the beginning of `body`, with their length.
    ///
    /// # Errors
    /// They are longer than the packet.
    pub(super) fn cut_off(body: &mut Bytes) -> Result<Self, Error> {
        let Some((of_length, length)) = super::length(body)? else {
            return Err(Error::MalformedRemainingLength);
        };
        body.advance(of_length);
        cut(body, length).map(Self)
    }

    fn read(&mut self) -> Result<(u8, Value), Error> {
        let kind = self.0.get_u8();
        let value = match kind {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => cut(&mut self.0, 1)?.get_u8().into(),
            0x13 | 0x21..=0x23 => cut(&mut self.0, 2)?.get_u16().into(),
            0x02 | 0x11 | 0x18 | 0x27 => cut(&mut self.0, 4)?.get_u32(),
            0x0b => {
                let Some((of_length, _)) = super::length(&self.0)? else {
                    return Err(Error::MalformedPacket);
                };
                self.0.advance(of_length);
                0
            }
            0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => {
                return Ok((kind, Value::Bytes(text(&mut self.0)?)));
            }
            0x26 => {
                text(&mut self.0)?;
                text(&mut self.0)?;
                return Ok((kind, Value::Pair));
            }
            _ => return Err(Error::InvalidPropertyType(kind)),
        };
        Ok((kind, Value::Number(value)))
    }
}

/// Ends after an error.
impl Iterator for Properties {
    type Item = Result<(u8, Value), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.0.clear();
        }
        Some(read)
    }
}

/// Bytes with their length before them.
pub(super) fn text(body: &mut Bytes) -> Result<Bytes, Error> {
    let length = cut(body, 2)?.get_u16();
    cut(body, length.into())
}

fn cut(body: &mut Bytes, length: usize) -> Result<Bytes, Error> {
    match length > body.len() {
        true => Err(Error::BoundaryCrossed(length)),
        false => Ok(body.split_to(length)),
    }
}
