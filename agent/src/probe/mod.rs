//! The BPF programs: what this kernel can do, load, attach, pin, adopt. Knows no VMs.
