//! Protobuf on the wire, field by field, for editing messages without losing a field that is not known here.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>. Bounded: nothing is allocated before its length is
//! known to be inside of the input.

use thiserror::Error;

/// Bytes that are no protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// A varint of more than ten bytes, or one that is cut off.
    #[error("bad varint at byte {0}")]
    Varint(usize),
    /// A length that leads out of the message.
    #[error("length leads out of the message at byte {0}")]
    Length(usize),
    /// A field number of 0 or above 2^29 - 1.
    #[error("bad field number at byte {0}")]
    FieldNumber(usize),
    /// Groups, which proto2 has long deprecated, or a wire type that does not exist.
    #[error("unknown wire type at byte {0}")]
    WireType(usize),
}

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Field number.
    pub number: u32,
    /// What it holds.
    pub value: Value,
}

/// What a field holds, by wire type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Integers, booleans, enumerations.
    Varint(u64),
    /// fixed64, double.
    Fixed64([u8; 8]),
    /// Strings, bytes, messages.
    Bytes(Vec<u8>),
    /// fixed32, float.
    Fixed32([u8; 4]),
}

impl Field {
    /// A varint field.
    pub fn varint(number: u32, value: u64) -> Self {
        Self { number, value: Value::Varint(value) }
    }

    /// A string, bytes or message field.
    pub fn bytes(number: u32, value: Vec<u8>) -> Self {
        Self { number, value: Value::Bytes(value) }
    }

    /// The varint in it, if it holds one.
    pub fn as_varint(&self) -> Option<u64> {
        if let Value::Varint(value) = self.value { Some(value) } else { None }
    }

    /// The bytes in it, if it holds some.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let Value::Bytes(value) = &self.value { Some(value) } else { None }
    }
}

/// The fields of a message, in order.
///
/// # Errors
/// Any [`WireError`]; a message is taken whole or not at all.
pub fn decode(message: &[u8]) -> Result<Vec<Field>, WireError> {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < message.len() {
        let begin = at;
        let key = varint(message, &mut at)?;
        let number = u32::try_from(key >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or(WireError::FieldNumber(begin))?;
        let value = match key & 7 {
            0 => Value::Varint(varint(message, &mut at)?),
            1 => Value::Fixed64(fixed(message, &mut at)?),
            2 => {
                let length = varint(message, &mut at)?;
                let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
                let bytes = end.and_then(|end| message.get(at..end)).ok_or(WireError::Length(begin))?;
                at += bytes.len();
                Value::Bytes(bytes.to_vec())
            }
            5 => Value::Fixed32(fixed(message, &mut at)?),
            _ => return Err(WireError::WireType(begin)),
        };
        fields.push(Field { number, value });
    }
    Ok(fields)
}

/// The message that these fields make.
pub fn encode(fields: &[Field]) -> Vec<u8> {
    let mut message = Vec::new();
    for field in fields {
        let key = |kind: u64| u64::from(field.number) << 3 | kind;
        match &field.value {
            Value::Varint(value) => {
                push_varint(&mut message, key(0));
                push_varint(&mut message, *value);
            }
            Value::Fixed64(value) => {
                push_varint(&mut message, key(1));
                message.extend_from_slice(value);
            }
            Value::Bytes(value) => {
                push_varint(&mut message, key(2));
                push_varint(&mut message, value.len() as u64);
                message.extend_from_slice(value);
            }
            Value::Fixed32(value) => {
                push_varint(&mut message, key(5));
                message.extend_from_slice(value);
            }
        }
    }
    message
}

fn varint(message: &[u8], at: &mut usize) -> Result<u64, WireError> {
    let begin = *at;
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *message.get(*at).ok_or(WireError::Varint(begin))?;
        *at += 1;
        let part = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && part > 1 {
            return Err(WireError::Varint(begin));
        }
        value |= part << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(WireError::Varint(begin))
}

fn fixed<const N: usize>(message: &[u8], at: &mut usize) -> Result<[u8; N], WireError> {
    let bytes = message.get(*at..).and_then(|rest| rest.first_chunk::<N>()).ok_or(WireError::Length(*at))?;
    *at += N;
    Ok(*bytes)
}

fn push_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields() -> impl Strategy<Value = Vec<Field>> {
        let value = prop_oneof![
            any::<u64>().prop_map(Value::Varint),
            any::<[u8; 8]>().prop_map(Value::Fixed64),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
            any::<[u8; 4]>().prop_map(Value::Fixed32),
        ];
        proptest::collection::vec((1u32..1 << 29, value).prop_map(|(number, value)| Field { number, value }), 0..12)
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_without_allocating() {
        assert_eq!(decode(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Err(WireError::Length(0)));
    }

    #[test]
    fn a_varint_may_not_overrun() {
        assert_eq!(decode(&[0x08, 0x80]), Err(WireError::Varint(1)));
        assert_eq!(decode(&[&[0x08u8][..], &[0xff; 10]].concat()), Err(WireError::Varint(1)));
    }

    #[test]
    fn field_zero_and_groups_are_refused() {
        assert_eq!(decode(&[0x00, 0x00]), Err(WireError::FieldNumber(0)));
        assert_eq!(decode(&[0x0b]), Err(WireError::WireType(0)));
    }

    proptest! {
        #[test]
        fn what_was_encoded_reads_back(fields in fields()) {
            prop_assert_eq!(decode(&encode(&fields)).unwrap(), fields);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(fields) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&fields)).unwrap(), fields);
            }
        }
    }
}
