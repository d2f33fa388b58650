//! VM-MIB: the schema, and get and get-next over it. Does no I/O.
