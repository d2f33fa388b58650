//! The machine that is measured.

use std::fs;

/// Kernel, processor, number of CPUs and clock, in one line.
pub(crate) fn description() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let guest = if cpuinfo.contains(" hypervisor ") { ", a guest itself" } else { "" };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let load = read("/proc/loadavg");
    format!(
        "Linux {}, {model}, {cpus} CPUs{guest}, clock {}, load {}",
        kernel.trim(),
        clock.trim(),
        load.split(' ').next().unwrap_or("unknown"),
    )
}
