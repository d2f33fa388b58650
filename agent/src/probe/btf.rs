//! A reader of BTF, the kernel's description of its own types (Documentation/bpf/btf.rst), for three questions: the offset
//! of a field in its struct, the value of a constant, and the number of arguments of a tracepoint.
//!
//! It accepts any bytes: malformed input is an error, never a panic, and every loop is bounded.

use thiserror::Error;

/// `BTF_MAGIC` of the kernel's btf.h, in the byte order of the kernel that wrote the data.
pub(crate) const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
const TYPE_LEN: usize = 12;
/// Nesting depth of structs, modifiers and typedefs above which the input is taken for cyclic.
const MAX_DEPTH: usize = 32;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Errors of the reader.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum BtfError {
    /// The data ends inside a structure.
    #[error("The BTF data ends at byte {at}, inside a {what}")]
    Truncated {
        /// Byte at which more was needed.
        at: usize,
        /// What was being read.
        what: &'static str,
    },
    /// The data is no BTF, or in the other byte order.
    #[error("The data does not begin with the BTF magic number in this machine's byte order")]
    BadMagic,
    /// A kind of type whose length this reader does not know.
    #[error("Type {id} is of kind {kind}, which this version does not know")]
    UnknownKind {
        /// Type id.
        id: u32,
        /// `BTF_KIND_*`.
        kind: u32,
    },
    /// The BTF has no such struct, field or tracepoint.
    #[error("The kernel's BTF has no {0}")]
    Missing(String),
    /// The field is a bit field.
    #[error("{0} is a bit field")]
    BitField(String),
    /// The offset does not fit into a load instruction.
    #[error("The offset {0} of a field is too large for a BPF load")]
    TooFar(u64),
    /// The types contain each other.
    #[error("The types nest deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// BTF data with an index of its types.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of type id `i + 1` in `types`; id 0 is void.
    starts: Vec<u32>,
    /// Offsets in `types` of the structs, the typedefs and the enums, which are the kinds that are looked up by name.
    structs: Vec<u32>,
    typedefs: Vec<u32>,
    enums: Vec<u32>,
}

/// The three words that begin each type.
#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    info: u32,
    size_or_type: u32,
    /// Offset in `types` behind the three words.
    body: usize,
}

impl Type {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn vlen(self) -> usize {
        usize::from((self.info & 0xffff) as u16)
    }

    /// Whether the upper byte of a member's offset is the size of a bit field.
    fn kind_flag(self) -> bool {
        self.info >> 31 == 1
    }
}

impl<'a> Btf<'a> {
    /// Indexes the types in `data`, which begins with the BTF header.
    ///
    /// # Errors
    ///
    /// [`BtfError`] when the data is no BTF.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let header = "header";
        if word16(data, 0, header)? != MAGIC {
            return Err(BtfError::BadMagic);
        }
        let header_len = word32(data, 4, header)? as usize;
        let section = |offset_at: usize| -> Result<&'a [u8], BtfError> {
            let offset = word32(data, offset_at, header)? as usize;
            let len = word32(data, offset_at + 4, header)? as usize;
            let start = header_len.max(HEADER_LEN).checked_add(offset);
            let end = start.and_then(|start| start.checked_add(len));
            start
                .zip(end)
                .and_then(|(start, end)| data.get(start..end))
                .ok_or(BtfError::Truncated { at: data.len(), what: "section" })
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut btf = Self {
            types,
            strings,
            starts: Vec::with_capacity(types.len() / 24),
            structs: Vec::new(),
            typedefs: Vec::new(),
            enums: Vec::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let start = u32::try_from(at).map_err(|_| BtfError::Truncated { at, what: "type" })?;
            btf.starts.push(start);
            let ty = btf.type_at(at)?;
            match ty.kind() {
                KIND_STRUCT => btf.structs.push(start),
                KIND_TYPEDEF => btf.typedefs.push(start),
                KIND_ENUM => btf.enums.push(start),
                _ => {}
            }
            at = ty.body + btf.body_len(ty)?;
        }
        Ok(btf)
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        Ok(Type {
            name: word32(self.types, at, "type")?,
            info: word32(self.types, at + 4, "type")?,
            size_or_type: word32(self.types, at + 8, "type")?,
            body: at + TYPE_LEN,
        })
    }

    fn body_len(&self, ty: Type) -> Result<usize, BtfError> {
        let vlen = ty.vlen();
        Ok(match ty.kind() {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * vlen,
            KIND_ENUM | KIND_FUNC_PROTO => 8 * vlen,
            KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
            | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
            kind => {
                let id = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
                return Err(BtfError::UnknownKind { id, kind });
            }
        })
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)?;
        self.type_at(start as usize).ok()
    }

    fn is_named(&self, name_offset: u32, name: &str) -> bool {
        self.strings
            .get(name_offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn find(&self, starts: &[u32], name: &str) -> Option<Type> {
        starts
            .iter()
            .filter_map(|&start| self.type_at(start as usize).ok())
            .find(|ty| self.is_named(ty.name, name))
    }

    /// The struct, union or other type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Result<Option<Type>, BtfError> {
        for _ in 0..MAX_DEPTH {
            let Some(ty) = self.by_id(id) else { return Ok(None) };
            match ty.kind() {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = ty.size_or_type;
                }
                _ => return Ok(Some(ty)),
            }
        }
        Err(BtfError::TooDeep)
    }

    /// Bit offset and type id of the member `name`, also if it is inside an anonymous member.
    fn member(&self, of: Type, name: &str, depth: usize) -> Result<Option<(u64, u32)>, BtfError> {
        if depth == MAX_DEPTH {
            return Err(BtfError::TooDeep);
        }
        for i in 0..of.vlen() {
            let at = of.body + 12 * i;
            let name_offset = word32(self.types, at, "member")?;
            let id = word32(self.types, at + 4, "member")?;
            let offset = word32(self.types, at + 8, "member")?;
            let (bits, bit_field) = if of.kind_flag() {
                (u64::from(offset & 0xff_ffff), offset >> 24 != 0)
            } else {
                (u64::from(offset), false)
            };
            if self.is_named(name_offset, name) {
                if bit_field || bits % 8 != 0 {
                    return Err(BtfError::BitField(name.to_owned()));
                }
                return Ok(Some((bits, id)));
            }
            if name_offset == 0
                && let Some(inner) = self.resolve(id)?
                && matches!(inner.kind(), KIND_STRUCT | KIND_UNION)
                && let Some((inner_bits, id)) = self.member(inner, name, depth + 1)?
            {
                return Ok(Some((bits + inner_bits, id)));
            }
        }
        Ok(None)
    }

    /// Offset in bytes of a field of `struct name`. `path` has dots between nested fields, as in `se.sum_exec_runtime`;
    /// members of anonymous structs and unions belong to the struct around them.
    ///
    /// # Errors
    ///
    /// [`BtfError::Missing`] if there is no such struct or field.
    pub fn field_offset(&self, name: &str, path: &str) -> Result<u64, BtfError> {
        let missing = || BtfError::Missing(format!("field {path} in struct {name}"));
        let mut ty = self
            .find(&self.structs, name)
            .ok_or_else(|| BtfError::Missing(format!("struct {name}")))?;
        let mut bits = 0;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let (offset, id) = self.member(ty, part, 0)?.ok_or_else(missing)?;
            bits += offset;
            if parts.peek().is_some() {
                ty = self.resolve(id)?.ok_or_else(missing)?;
                if !matches!(ty.kind(), KIND_STRUCT | KIND_UNION) {
                    return Err(missing());
                }
            }
        }
        Ok(bits / 8)
    }

    /// Value of a constant of `enum name`.
    ///
    /// # Errors
    ///
    /// [`BtfError::Missing`] if there is no such enum or constant.
    pub fn enum_value(&self, name: &str, constant: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("constant {constant} in enum {name}"));
        let ty = self.find(&self.enums, name).ok_or_else(missing)?;
        for at in (0..ty.vlen()).map(|i| ty.body + 8 * i) {
            if self.is_named(word32(self.types, at, "enum")?, constant) {
                return word32(self.types, at + 4, "enum");
            }
        }
        Err(missing())
    }

    /// Number of arguments of a BPF program at the tracepoint `name`. They are the parameters of the type `btf_trace_NAME`
    /// but for the first, which is the kernel's own.
    ///
    /// # Errors
    ///
    /// [`BtfError::Missing`] if the kernel has no such tracepoint.
    pub fn tracepoint_args(&self, name: &str) -> Result<usize, BtfError> {
        let missing = || BtfError::Missing(format!("tracepoint {name}"));
        let typedef =
            self.find(&self.typedefs, &format!("btf_trace_{name}")).ok_or_else(missing)?;
        let pointer = self.resolve(typedef.size_or_type)?.ok_or_else(missing)?;
        let prototype = self.resolve(pointer.size_or_type)?.ok_or_else(missing)?;
        if pointer.kind() != KIND_PTR || prototype.kind() != KIND_FUNC_PROTO {
            return Err(missing());
        }
        prototype.vlen().checked_sub(1).ok_or_else(missing)
    }
}

fn bytes<const N: usize>(data: &[u8], at: usize, what: &'static str) -> Result<[u8; N], BtfError> {
    data.get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(BtfError::Truncated { at: data.len(), what })
}

fn word16(data: &[u8], at: usize, what: &'static str) -> Result<u16, BtfError> {
    bytes(data, at, what).map(u16::from_ne_bytes)
}

fn word32(data: &[u8], at: usize, what: &'static str) -> Result<u32, BtfError> {
    bytes(data, at, what).map(u32::from_ne_bytes)
}
