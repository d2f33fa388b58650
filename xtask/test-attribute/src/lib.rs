//! `#[test]` for crates whose tests `xtask::harness` runs. With `#[macro_use] extern crate xtask_test` it takes the
//! place of the compiler's own, of which nothing would remain in a crate with a harness of its own.

use proc_macro::{TokenStream, TokenTree};

/// Registers a function without arguments with `xtask::harness`.
#[proc_macro_attribute]
pub fn test(_: TokenStream, item: TokenStream) -> TokenStream {
    let words = item.clone().into_iter().collect::<Vec<_>>();
    let name = words.windows(2).find_map(|pair| match pair {
        [TokenTree::Ident(word), TokenTree::Ident(name)] if word.to_string() == "fn" => Some(name),
        _ => None,
    });
    let registration = name.map_or_else(
        || "compile_error!(\"#[test] stands above a function\");".to_owned(),
        |name| {
            format!(
                "::xtask::harness::inventory::submit! {{ ::xtask::harness::Test {{ \
                 module: module_path!(), name: \"{name}\", run: {name} }} }}"
            )
        },
    );
    let registration = registration.parse::<TokenStream>();
    item.into_iter().chain(registration.into_iter().flatten()).collect()
}
