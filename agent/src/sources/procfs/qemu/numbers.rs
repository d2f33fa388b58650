//! QEMU's numbers: sizes (`qemu_strtosz()` of its `util/cutils.c`) and counts.

/// Bytes from a decimal number, which may have a fraction, or a hexadecimal one, with a binary suffix; without a suffix in
/// units of `unit` bytes. `None`: QEMU does not take it, or it does not fit.
pub(super) fn size(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(rest) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // A suffix that is a hexadecimal digit is one.
        let end = rest.find(|char: char| !char.is_ascii_hexdigit()).unwrap_or(rest.len());
        let (digits, suffix) = rest.split_at(end);
        return u64::from_str_radix(digits, 16).ok()?.checked_mul(scale(suffix, unit)?);
    }
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => {
            rest.split_at(rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len()))
        }
        None => ("", rest),
    };
    let scale = scale(suffix, unit)?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    // Digits behind the 18th change no byte of a suffix up to P.
    let fraction = fraction.get(..fraction.len().min(18))?;
    if fraction.bytes().all(|digit| digit == b'0') {
        return Some(whole);
    }
    // QEMU wants a suffix behind a fraction.
    if scale == 1 || suffix.is_empty() {
        return None;
    }
    let base = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()?.checked_mul(u128::from(scale))? / base;
    whole.checked_add(u64::try_from(part).ok()?)
}

fn scale(suffix: &str, unit: u64) -> Option<u64> {
    Some(match suffix {
        "" => unit,
        "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return None,
    })
}

/// A number that C's strtoull() reads with base 0.
pub(super) fn count(text: &str) -> Option<u32> {
    let text = text.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    match text.strip_prefix('0') {
        None | Some("") => text.parse().ok(),
        Some(rest) => match rest.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => u32::from_str_radix(rest, 8).ok(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_as_qemu_takes_them() {
        let mib = |text| size(text, 1 << 20);
        for (text, bytes) in [
            ("64", 64 << 20),
            ("1.5G", 3 << 29),
            ("0.25G", 1 << 28),
            ("1.k", 1 << 10),
            ("65536b", 65536),
            ("2048K", 2 << 20),
            ("1T", 1 << 40),
            ("1P", 1 << 50),
            ("1e", 1 << 60),
            ("0x10", 16 << 20),
            ("0x10G", 16 << 30),
            (" +7M", 7 << 20),
            ("0", 0),
        ] {
            assert_eq!(mib(text), Some(bytes), "{text}");
        }
        for text in
            ["", "G", "-1", "1.5b", "1.5", "1GB", "1.5.G", "4q", "1e3", "16E", "0x", "0x1.5", ".5G"]
        {
            assert_eq!(mib(text), None, "{text}");
        }
        assert_eq!(size("4096", 1), Some(4096));
        assert_eq!(size("1.5", 1), None);
    }

    #[test]
    fn counts_as_qemu_takes_them() {
        let expected = [Some(0), Some(12), Some(8), Some(16), None, None, None];
        assert_eq!(["0", "12", "010", "0x10", "", "x", "-1"].map(count), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in "[0-9a-zA-Z.é+-]{0,30}") {
            let _ = (size(&text, 1 << 20), count(&text));
        }
    }
}
