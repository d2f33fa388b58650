//! The fields of kernel structs that the programs read.
//!
//! Field offsets differ between kernels. The programs are compiled with placeholder offsets ([`PLACEHOLDER`] plus the
//! number of the field); before loading, the agent replaces the offset of every such load by the real one from the
//! kernel's BTF. This is a small CO-RE relocation, which rustc does not emit. A field behind a pointer that the
//! verifier cannot type is read with `bpf_probe_read_kernel`, at the offset in the `OFFSETS` table.

/// First placeholder offset: every load offset from here on stands for a field.
///
/// No struct or map value that the programs read is this large, so no real offset is a placeholder.
pub const PLACEHOLDER: i16 = 0x7f00;

/// Which kernels have a field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Presence {
    /// Every kernel that kvmeter runs on.
    Required,
    /// Kernels that are built with KVM.
    WithKvm,
    /// Kernels on which disk I/O can be counted; the others get CPU counters only.
    ForDisks,
    /// Kernels in which cgroups can limit block I/O; the others delay no request for one.
    WithIoCgroups,
    /// Some kernels; a global says which.
    Optional,
}

/// Declares the fields: variant, struct, member (the first name that the kernel's BTF has), presence.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident, $struct:literal, $member:literal $(or $other:literal)?, $presence:ident;)+) => {
        /// A field of a kernel struct.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        pub enum Field {
            $(
                #[doc = concat!("`", $struct, ".", $member, "`.")]
                $(#[$doc])*
                $name,
            )+
        }

        impl Field {
            /// Number of fields.
            pub const COUNT: usize = [$(Self::$name),+].len();

            /// All fields, by number.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$name),+];

            /// The struct that has the field.
            #[cfg(feature = "user")]
            #[must_use]
            pub const fn of_struct(self) -> &'static str {
                match self {
                    $(Self::$name => $struct,)+
                }
            }

            /// Names of the field in BTF, newest first; a dot leads into a struct within the struct.
            #[cfg(feature = "user")]
            #[must_use]
            pub const fn members(self) -> &'static [&'static str] {
                match self {
                    $(Self::$name => &[$member $(, $other)?],)+
                }
            }

            /// Which kernels have the field.
            #[cfg(feature = "user")]
            #[must_use]
            pub const fn presence(self) -> Presence {
                match self {
                    $(Self::$name => Presence::$presence,)+
                }
            }
        }
    };
}

fields! {
    /// Thread id.
    TaskPid, "task_struct", "pid", Required;
    /// Process id.
    TaskTgid, "task_struct", "tgid", Required;
    /// The first eight bytes of the name.
    TaskComm, "task_struct", "comm", Required;
    /// `__state` since Linux 5.14.
    TaskState, "task_struct", "__state" or "state", Required;
    /// `CLOCK_MONOTONIC` in ns.
    TaskStartTime, "task_struct", "start_time", Required;
    /// CPU time in ns, exact at a switch.
    TaskSumExecRuntime, "task_struct", "se.sum_exec_runtime", Required;
    /// Time runnable without a CPU in ns.
    TaskRunDelay, "task_struct", "sched_info.run_delay", Required;
    /// Not null inside `KVM_RUN`.
    TaskPreemptNotifiers, "task_struct", "preempt_notifiers.first", WithKvm;
    /// Exit status, encoded as in wait(2).
    TaskExitCode, "task_struct", "exit_code", Required;
    /// Shared by all threads of a process.
    TaskSignal, "task_struct", "signal", Required;
    /// Threads that have not begun to exit.
    SignalLive, "signal_struct", "live.counter", Required;
    /// Exit status of all threads, encoded as in wait(2), once exit_group(2) or a signal ends them.
    SignalGroupExitCode, "signal_struct", "group_exit_code", Required;
    /// CPU time in ns of threads that have exited.
    SignalSumSchedRuntime, "signal_struct", "sum_sched_runtime", Required;
    /// `PF_*`.
    TaskFlags, "task_struct", "flags", Required;
    TaskCgroups, "task_struct", "cgroups", WithIoCgroups;
    /// The element of the controller `io`: the agent adds its place in the array.
    CgroupsIo, "css_set", "subsys", WithIoCgroups;
    StateCgroup, "cgroup_subsys_state", "cgroup", WithIoCgroups;
    CgroupNode, "cgroup", "kn", WithIoCgroups;
    NodeId, "kernfs_node", "id", WithIoCgroups;
    BioGroup, "bio", "bi_blkg", WithIoCgroups;
    GroupCgroup, "blkcg_gq", "blkcg", WithIoCgroups;
    IoCgroup, "blkcg", "css.cgroup", WithIoCgroups;
    TaskFiles, "task_struct", "files", ForDisks;
    FilesTable, "files_struct", "fdt", ForDisks;
    TableFiles, "fdtable", "fd", ForDisks;
    TableLen, "fdtable", "max_fds", ForDisks;
    /// The first argument of a system call: `di` on x86-64; on arm64 the first element of `regs`.
    RegistersFirst, "pt_regs", "di" or "regs", ForDisks;
    KiocbFile, "kiocb", "ki_filp", ForDisks;
    KiocbPosition, "kiocb", "ki_pos", ForDisks;
    KiocbFlags, "kiocb", "ki_flags", ForDisks;
    /// Completion callback; null for a synchronous request.
    KiocbComplete, "kiocb", "ki_complete", ForDisks;
    /// Bytes that are left.
    IterCount, "iov_iter", "count", ForDisks;
    /// Whether data goes from memory to the file.
    IterIsSource, "iov_iter", "data_source", ForDisks;
    InodeSize, "inode", "i_size", ForDisks;
    FileInode, "file", "f_inode", ForDisks;
    /// Flags of open(2).
    FileFlags, "file", "f_flags", ForDisks;
    InodeMode, "inode", "i_mode", ForDisks;
    InodeNumber, "inode", "i_ino", ForDisks;
    InodeSuperBlock, "inode", "i_sb", ForDisks;
    InodeDevice, "inode", "i_rdev", ForDisks;
    SuperBlockDevice, "super_block", "s_dev", ForDisks;
    /// Head of the request's list of bios.
    RequestBio, "request", "bio", ForDisks;
    BioNext, "bio", "bi_next", ForDisks;
    BioDevice, "bio", "bi_bdev", ForDisks;
    BioOperation, "bio", "bi_opf", ForDisks;
    BioStatus, "bio", "bi_status", ForDisks;
    BioSector, "bio", "bi_iter.bi_sector", ForDisks;
    BioBytes, "bio", "bi_iter.bi_size", ForDisks;
    BlockDeviceNumber, "block_device", "bd_dev", ForDisks;
    UringFile, "io_kiocb", "file", ForDisks;
    /// `IOSQE_FIXED_FILE` and other flags of the request.
    UringFlags, "io_kiocb", "flags", ForDisks;
    /// The descriptor, between submission and completion. Since Linux 5.19.
    UringDescriptor, "io_kiocb", "cqe.fd", Optional;
    UringOperation, "io_kiocb", "opcode", ForDisks;
    UringResult, "io_uring_cqe", "res", ForDisks;
}

impl Field {
    /// Placeholder offset of the field.
    #[must_use]
    pub const fn placeholder(self) -> i16 {
        PLACEHOLDER + self as u8 as i16
    }

    /// Index of the field in [`Self::ALL`].
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The field that a load offset stands for; `None`: the offset is no placeholder.
    #[must_use]
    pub fn of_placeholder(offset: i16) -> Option<Self> {
        let number = usize::try_from(offset.checked_sub(PLACEHOLDER)?).ok()?;
        Self::ALL.get(number).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_stands_for_its_field() {
        for field in Field::ALL {
            assert_eq!(Field::of_placeholder(field.placeholder()), Some(field));
        }
        assert_eq!(Field::of_placeholder(0), None);
        assert_eq!(Field::of_placeholder(PLACEHOLDER - 1), None);
        assert_eq!(Field::of_placeholder(i16::MIN), None);
        assert_eq!(Field::of_placeholder(i16::MAX), None);
    }
}
