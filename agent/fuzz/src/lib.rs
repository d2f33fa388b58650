//! What the fuzz targets do with their octets. The agent's ordinary tests run the same with octets from
//! proptest, so that the targets never rot.

pub mod btf;
pub mod codec;
pub mod descriptions;
pub mod objects;
pub mod session;
