//! The fields of kernel structs that the programs read.
//!
//! Where a field lies differs from kernel to kernel. A program is built with loads whose offset is no offset but
//! [`PLACEHOLDER`] plus the number of the field; the agent takes the true offsets from the kernel's BTF and writes them
//! into these instructions before it loads the program. So each read is the one load that it would be in the
//! kernel itself. Behind a pointer whose type the verifier does not know no load is allowed; what is there is copied by
//! a helper, and the program takes the offset from a table of all of them.

/// Offsets of loads from here on stand for fields. No struct that is read is so large, and no map value.
pub const PLACEHOLDER: i16 = 0x7f00;

/// A field.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Field {
    /// `task_struct.pid`: the thread id.
    TaskPid,
    /// `task_struct.tgid`: the process id.
    TaskTgid,
    /// `task_struct.comm`: the first eight octets of the name.
    TaskComm,
    /// `task_struct.__state`.
    TaskState,
    /// `task_struct.start_time`: `CLOCK_MONOTONIC` in ns.
    TaskStartTime,
    /// `task_struct.se.sum_exec_runtime`: time on a CPU in ns, exact at a switch.
    TaskSumExecRuntime,
    /// `task_struct.sched_info.run_delay`: time runnable without a CPU in ns.
    TaskRunDelay,
    /// `task_struct.preempt_notifiers.first`: not null inside `KVM_RUN`.
    TaskPreemptNotifiers,
    /// `task_struct.exit_code`: as wait(2) has it.
    TaskExitCode,
    /// `task_struct.signal`: the process.
    TaskSignal,
    /// `signal_struct.live`: threads that have not begun to exit.
    SignalLive,
    /// `signal_struct.sum_sched_runtime`: CPU time in ns of threads that are gone.
    SignalSumSchedRuntime,
    /// `task_struct.files`.
    TaskFiles,
    /// `files_struct.fdt`.
    FilesTable,
    /// `fdtable.fd`.
    TableFiles,
    /// `fdtable.max_fds`.
    TableLen,
    /// `pt_regs`: the first argument of a system call.
    RegistersFirst,
    /// `kiocb.ki_filp`.
    KiocbFile,
    /// `kiocb.ki_pos`.
    KiocbPosition,
    /// `kiocb.ki_flags`.
    KiocbFlags,
    /// `kiocb.ki_complete`: who is told of the end; null where the caller waits for it.
    KiocbComplete,
    /// `iov_iter.count`: octets that are left.
    IterCount,
    /// `inode.i_size`.
    InodeSize,
    /// `iov_iter.data_source`: whether data goes from memory to the file.
    IterIsSource,
    /// `file.f_inode`.
    FileInode,
    /// `file.f_flags`: as open(2) was given them.
    FileFlags,
    /// `inode.i_mode`.
    InodeMode,
    /// `inode.i_ino`.
    InodeNumber,
    /// `inode.i_sb`.
    InodeSuperBlock,
    /// `inode.i_rdev`.
    InodeDevice,
    /// `super_block.s_dev`.
    SuperBlockDevice,
    /// `request.bio`: the first of those that it is made of.
    RequestBio,
    /// `bio.bi_next`.
    BioNext,
    /// `bio.bi_bdev`.
    BioDevice,
    /// `bio.bi_opf`.
    BioOperation,
    /// `bio.bi_status`.
    BioStatus,
    /// `bio.bi_iter.bi_sector`.
    BioSector,
    /// `bio.bi_iter.bi_size`.
    BioOctets,
    /// `block_device.bd_dev`.
    BlockDeviceNumber,
    /// `io_kiocb.file`.
    UringFile,
    /// `io_kiocb.opcode`.
    UringOperation,
    /// `io_uring_cqe.res`.
    UringResult,
}

impl Field {
    /// All of them, by number.
    pub const ALL: [Self; 42] = [
        Self::TaskPid,
        Self::TaskTgid,
        Self::TaskComm,
        Self::TaskState,
        Self::TaskStartTime,
        Self::TaskSumExecRuntime,
        Self::TaskRunDelay,
        Self::TaskPreemptNotifiers,
        Self::TaskExitCode,
        Self::TaskSignal,
        Self::SignalLive,
        Self::SignalSumSchedRuntime,
        Self::TaskFiles,
        Self::FilesTable,
        Self::TableFiles,
        Self::TableLen,
        Self::RegistersFirst,
        Self::KiocbFile,
        Self::KiocbPosition,
        Self::KiocbFlags,
        Self::KiocbComplete,
        Self::IterCount,
        Self::InodeSize,
        Self::IterIsSource,
        Self::FileInode,
        Self::FileFlags,
        Self::InodeMode,
        Self::InodeNumber,
        Self::InodeSuperBlock,
        Self::InodeDevice,
        Self::SuperBlockDevice,
        Self::RequestBio,
        Self::BioNext,
        Self::BioDevice,
        Self::BioOperation,
        Self::BioStatus,
        Self::BioSector,
        Self::BioOctets,
        Self::BlockDeviceNumber,
        Self::UringFile,
        Self::UringOperation,
        Self::UringResult,
    ];

    /// Whether only the hooks of images read it, without which a kernel can do.
    #[must_use]
    pub const fn is_of_images(self) -> bool {
        self as u8 >= Self::TaskFiles as u8
    }

    /// The offset that stands for it.
    #[must_use]
    pub const fn placeholder(self) -> i16 {
        PLACEHOLDER + self as u8 as i16
    }

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The field for which an offset stands; `None` = it is an offset.
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
    fn marks_and_fields_belong_together() {
        for field in Field::ALL {
            assert_eq!(Field::of_placeholder(field.placeholder()), Some(field));
        }
        assert_eq!(Field::of_placeholder(0), None);
        assert_eq!(Field::of_placeholder(PLACEHOLDER - 1), None);
        assert_eq!(Field::of_placeholder(i16::MIN), None);
        assert_eq!(Field::of_placeholder(i16::MAX), None);
    }
}
