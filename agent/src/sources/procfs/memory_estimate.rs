//! An estimate of a VM's memory, for VMMs whose command line does not give it.

/// The size of the largest writable mapping in `/proc/PID/maps`, in bytes; mappings of the same object count together.
/// Guest memory dwarfs everything else that a VMM maps. `None`: no mapping is as large as 1 MiB.
pub(super) fn estimate(maps: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(maps);
    let mut named: Vec<(&str, u64)> = Vec::new();
    let mut largest = 0;
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(access)) = (fields.next(), fields.next()) else { continue };
        let Some(size) = size(range) else { continue };
        if !access.starts_with("rw") {
            continue;
        }
        // One memory object may be mapped in pieces, for example around the hole below 4 GiB.
        match fields.nth(3).filter(|name| !name.starts_with('[')) {
            Some(name) => match named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum = sum.saturating_add(size),
                None => named.push((name, size)),
            },
            None => largest = largest.max(size),
        }
    }
    let largest = named.into_iter().map(|(_, sum)| sum).fold(largest, u64::max);
    (largest >= 1 << 20).then_some(largest)
}

fn size(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_memory_object_is_the_guests() {
        let maps = b"00400000-00500000 r-xp 00000000 08:01 1 /usr/bin/vmm\n\
            7f0000000000-7f0008000000 rw-s 00000000 00:01 7 /memfd:guest (deleted)\n\
            7f1000000000-7f1004000000 rw-s 08000000 00:01 7 /memfd:guest (deleted)\n\
            7f2000000000-7f2004000000 ---p 00000000 00:00 0\n\
            7f3000000000-7f3000100000 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(estimate(maps), Some(0x0c00_0000));
        assert_eq!(estimate(b""), None);
        assert_eq!(estimate(b"zz-1 rw-p\n5-1 rw-p 0 0 0\n"), None);
    }
}
