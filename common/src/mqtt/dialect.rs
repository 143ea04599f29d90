//! One session, two dialects: packets to bytes and back, in MQTT 3.1.1 and 5.
//!
//! Everything above this is the same for both. Here a frame is always whole: a codec that asks for more bytes of
//! it is answered that the packet is broken.

mod properties;
mod v4;
mod v5;

use bytes::BytesMut;
use rumqttc::mqttbytes::Error;

use super::packet::{Connect, Incoming, Outgoing, Publication};
use super::terms::Version;

/// The fixed header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Type and flags.
    pub(super) first: u8,
    /// Bytes of the header itself.
    pub(super) bytes: usize,
    /// Bytes behind it.
    pub(super) rest: usize,
}

impl Head {
    /// None, when not all of it is there.
    ///
    /// # Errors
    /// No packet begins so.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let Some((first, behind)) = bytes.split_first() else {
            return Ok(None);
        };
        let read = length(behind)?;
        Ok(read.map(|(of_length, rest)| Self {
            first: *first,
            bytes: 1 + of_length,
            rest,
        }))
    }

    /// Of the whole packet.
    pub(super) fn whole(self) -> usize {
        self.bytes + self.rest
    }
}

impl Version {
    /// The packet in one whole frame.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn read(self, mut frame: BytesMut, head: Head) -> Result<Incoming, Error> {
        let read = match self {
            Self::V311 => v4::read(&mut frame),
            Self::V5 => v5::read(frame, head.bytes),
        };
        read.map_err(|error| match error {
            Error::InsufficientBytes(_) => Error::MalformedPacket,
            other => other,
        })
    }

    /// Adds CONNECT.
    ///
    /// # Errors
    /// Something in it is too long.
    pub(super) fn connect(self, packet: &Connect<'_>, to: &mut BytesMut) -> Result<usize, Error> {
        match self {
            Self::V311 => v4::connect(packet, to),
            Self::V5 => v5::connect(packet, to),
        }
    }

    /// Adds PUBLISH.
    ///
    /// # Errors
    /// Something in it is too long.
    pub(super) fn publish(
        self,
        publication: Publication,
        to: &mut BytesMut,
    ) -> Result<usize, Error> {
        match self {
            Self::V311 => v4::publish(publication, to),
            Self::V5 => v5::publish(&publication, to),
        }
    }

    /// How many bytes this publication has on the wire.
    pub(super) fn size(self, publication: &Publication) -> usize {
        let rest = match self {
            Self::V311 => v4::size(publication),
            Self::V5 => v5::size(publication),
        };
        1 + length_of(rest) + rest
    }

    /// Adds any other packet.
    ///
    /// # Errors
    /// Something in it is too long.
    pub(super) fn write(self, packet: &Outgoing<'_>, to: &mut BytesMut) -> Result<usize, Error> {
        match self {
            Self::V311 => v4::write(packet, to),
            Self::V5 => v5::write(packet, to),
        }
    }
}

/// A length and how many bytes it takes, the latter first; none, when not all of it is there.
///
/// # Errors
/// It has no end.
pub(super) fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Error> {
    let mut length = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((at + 1, length)));
        }
    }
    match bytes.len() {
        0..4 => Ok(None),
        _ => Err(Error::MalformedRemainingLength),
    }
}

/// How many bytes a length takes.
fn length_of(length: usize) -> usize {
    match length {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests;
