//! Framing: one byte of kind, four bytes of length (big endian), then that many bytes.

use crate::agent::transfer::buffers::Buffers;
use bytes::{Buf, Bytes};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest control frame, bytes.
pub const MAX_CONTROL: usize = 64 << 10;
/// Largest data frame, bytes: what is on its way between the threads stays in the processor's cache then. With its header it
/// fills 16 of TLS's records.
pub const MAX_DATA: usize = (256 << 10) - HEADER;
const HEADER: usize = 5;
const COUNT: usize = 8;
const LENGTH: usize = 4;

const KIND_CONTROL: u8 = 1;
const KIND_DATA: u8 = 2;
const KIND_TAKEN: u8 = 3;
const KIND_END: u8 = 4;
const KIND_PACKED: u8 = 5;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message as JSON.
    Control(Bytes),
    /// Bytes of the file that was begun last.
    Data(Bytes),
    /// The same, compressed: how many bytes they are, 4 bytes, big endian, and then an LZ4 block.
    Packed(Packed),
    /// How many control and data frames of the peer were taken, on all connections of the link: 8 bytes, big endian. It is the
    /// sign of life too.
    Taken(u64),
    /// Nothing follows. A connection that ends without it was lost.
    End,
}

/// Bytes of a file, compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// How many bytes it stands for: 1 to [`MAX_DATA`].
    pub length: usize,
    /// Those of the block.
    pub block: Bytes,
}

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The stream failed or ended inside a frame.
    #[error("read a frame")]
    Read(#[source] std::io::Error),
    /// The stream failed.
    #[error("write a frame")]
    Write(#[source] std::io::Error),
    /// A kind that this version does not know.
    #[error("the peer sent a frame of unknown kind {0}")]
    Kind(u8),
    /// Longer than its kind may be.
    #[error("the peer announced a frame of {length} bytes, {limit} are allowed")]
    TooLong {
        /// Announced length, bytes.
        length: usize,
        /// Limit of its kind, bytes.
        limit: usize,
    },
    /// Shorter than its kind is.
    #[error("the peer sent a frame of {0} bytes, which its kind can't be")]
    TooShort(usize),
    /// It stands for more than a frame may have, or for nothing.
    #[error("the peer sent a frame that stands for {length} bytes, 1 to {MAX_DATA} are allowed")]
    Unpacked {
        /// Announced length, bytes.
        length: usize,
    },
}

/// Reads one frame, data into one of `buffers`; `None` at a clean end between two frames. The length is checked before
/// anything is allocated.
///
/// # Errors
/// Where the stream fails, or what arrives is no frame.
pub async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R, buffers: &Buffers) -> Result<Option<Frame>, FrameError> {
    let mut kind = [0_u8; 1];
    if reader.read(&mut kind).await.map_err(FrameError::Read)? == 0 {
        return Ok(None);
    }
    let limit = match kind[0] {
        KIND_CONTROL => MAX_CONTROL,
        KIND_DATA | KIND_PACKED => MAX_DATA,
        KIND_TAKEN => COUNT,
        KIND_END => 0,
        other => return Err(FrameError::Kind(other)),
    };
    let length = reader.read_u32().await.map_err(FrameError::Read)? as usize;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    match kind[0] {
        KIND_CONTROL => {
            let mut message = vec![0; length];
            reader.read_exact(&mut message).await.map_err(FrameError::Read)?;
            Ok(Some(Frame::Control(message.into())))
        }
        KIND_TAKEN if length < COUNT => Err(FrameError::TooShort(length)),
        KIND_TAKEN => Ok(Some(Frame::Taken(reader.read_u64().await.map_err(FrameError::Read)?))),
        KIND_END => Ok(Some(Frame::End)),
        KIND_PACKED if length < LENGTH => Err(FrameError::TooShort(length)),
        KIND_PACKED => {
            let unpacked = reader.read_u32().await.map_err(FrameError::Read)? as usize;
            if !(1..=MAX_DATA).contains(&unpacked) {
                return Err(FrameError::Unpacked { length: unpacked });
            }
            let block = read_data(reader, buffers, length - LENGTH).await?;
            Ok(Some(Frame::Packed(Packed { length: unpacked, block })))
        }
        _ => Ok(Some(Frame::Data(read_data(reader, buffers, length).await?))),
    }
}

async fn read_data<R: AsyncRead + Unpin>(
    reader: &mut R,
    buffers: &Buffers,
    length: usize,
) -> Result<Bytes, FrameError> {
    let mut buffer = buffers.take();
    reader.read_exact(&mut buffer.spare()[..length]).await.map_err(FrameError::Read)?;
    buffer.fill(length);
    Ok(buffer.freeze())
}

/// Writes one frame, without flushing.
///
/// # Errors
/// Where the stream fails, or the payload is longer than its kind may be.
pub async fn write_frame<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> Result<(), FrameError> {
    let count;
    // What follows the length of the frame and is no payload.
    let mut unpacked = [0; LENGTH];
    let (kind, payload, limit) = match frame {
        Frame::Control(payload) => (KIND_CONTROL, &payload[..], MAX_CONTROL),
        Frame::Data(payload) => (KIND_DATA, &payload[..], MAX_DATA),
        Frame::Packed(Packed { length, block }) => {
            unpacked = u32::try_from(*length).unwrap_or(u32::MAX).to_be_bytes();
            (KIND_PACKED, &block[..], MAX_DATA - LENGTH)
        }
        Frame::Taken(taken) => {
            count = taken.to_be_bytes();
            (KIND_TAKEN, &count[..], COUNT)
        }
        Frame::End => (KIND_END, &[][..], 0),
    };
    if payload.len() > limit {
        return Err(FrameError::TooLong { length: payload.len(), limit });
    }
    let begin = if kind == KIND_PACKED { HEADER + LENGTH } else { HEADER };
    let length = u32::try_from(begin - HEADER + payload.len()).unwrap_or(u32::MAX);
    let mut header = [0; HEADER + LENGTH];
    header[0] = kind;
    header[1..HEADER].copy_from_slice(&length.to_be_bytes());
    header[HEADER..].copy_from_slice(&unpacked);
    // Together: on its own, the header would become a TLS record and a packet.
    writer.write_all_buf(&mut Buf::chain(&header[..begin], payload)).await.map_err(FrameError::Write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(future)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(kind in 0..5, taken: u64, length in 1..=MAX_DATA, payload in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let frame = match kind {
                0 => Frame::Control(payload.into()),
                1 => Frame::Data(payload.into()),
                2 => Frame::Taken(taken),
                3 => Frame::Packed(Packed { length, block: payload.into() }),
                _ => Frame::End,
            };
            let read = block(async {
                let mut wire = Vec::new();
                write_frame(&mut wire, &frame).await.expect("write");
                read_frame(&mut wire.as_slice(), &Buffers::default()).await.expect("read")
            });
            prop_assert_eq!(read, Some(frame));
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..64)) {
            block(async {
                let mut reader = garbage.as_slice();
                while let Ok(Some(_)) = read_frame(&mut reader, &Buffers::default()).await {}
            });
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let wire = [KIND_CONTROL, 0xff, 0xff, 0xff, 0xff];
        let error = block(async { read_frame(&mut wire.as_slice(), &Buffers::default()).await }).expect_err("too long");
        assert!(matches!(error, FrameError::TooLong { length: 0xffff_ffff, limit: MAX_CONTROL }));
    }

    #[test]
    fn what_stands_for_more_than_a_frame_or_for_nothing_is_refused_before_it_is_read() {
        for length in [0, MAX_DATA + 1, u32::MAX as usize] {
            let mut wire = vec![KIND_PACKED, 0, 0, 0, 5];
            wire.extend((length as u32).to_be_bytes());
            let error = block(async { read_frame(&mut wire.as_slice(), &Buffers::default()).await });
            assert!(matches!(error, Err(FrameError::Unpacked { length: announced }) if announced == length));
        }
        let error = block(async { read_frame(&mut [KIND_PACKED, 0, 0, 0, 3].as_slice(), &Buffers::default()).await });
        assert!(matches!(error, Err(FrameError::TooShort(3))));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_an_error_and_between_two_is_not() {
        let read = |mut wire: &[u8]| block(async { read_frame(&mut wire, &Buffers::default()).await });
        assert!(matches!(read(&[]), Ok(None)));
        assert!(read(&[KIND_DATA, 0, 0]).is_err());
        assert!(read(&[KIND_DATA, 0, 0, 0, 2, 1]).is_err());
        assert!(read(&[KIND_TAKEN, 0, 0, 0, 2, 1, 1]).is_err());
    }
}
