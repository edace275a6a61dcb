//! The attribute macro of `tidemill-guest`.

use proc_macro::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{FnArg, Ident, ItemFn, Path, Token, parse_macro_input};

/// Makes a function the handler of this component. One per crate.
///
/// `#[handler]` alone, or `#[handler(init = ready)]` where `fn ready(setup: &Setup) -> Result<(), Refusal>` runs once before the first
/// record, sees the guarantee and the order, and may refuse.
#[proc_macro_attribute]
pub fn handler(options: TokenStream, item: TokenStream) -> TokenStream {
    let options = parse_macro_input!(options as Options);
    let function = parse_macro_input!(item as ItemFn);
    match check(&function) {
        Ok(()) => export(&options, &function).into(),
        Err(error) => {
            let error = error.to_compile_error();
            quote! { #error #function }.into()
        }
    }
}

/// What stands in the brackets of `#[handler(…)]`.
struct Options {
    init: Option<Path>,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if input.is_empty() {
            return Ok(Self { init: None });
        }
        let unknown = "the only option is `init`: write `#[handler(init = my_function)]`";
        let name: Ident = input.parse().map_err(|error| syn::Error::new(error.span(), unknown))?;
        if name != "init" {
            return Err(syn::Error::new(name.span(), unknown));
        }
        input.parse::<Token![=]>().map_err(|error| syn::Error::new(error.span(), unknown))?;
        let init = input
            .parse()
            .map_err(|error| syn::Error::new(error.span(), "name the function: `#[handler(init = my_function)]`"))?;
        input.parse::<Option<Token![,]>>()?;
        if !input.is_empty() {
            return Err(input.error(unknown));
        }
        Ok(Self { init: Some(init) })
    }
}

/// Refuses what no shape of handler can be, with the way out. What is left, the trait `Handler` checks with types.
fn check(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    if let Some(asyncness) = &signature.asyncness {
        return Err(syn::Error::new_spanned(
            asyncness,
            "a handler is not `async`: remove the word; capability calls simply wait, and the host runs other work meanwhile",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            &signature.generics,
            "a handler has no generics: name the type, for example `Json<Order>`; leave lifetimes out",
        ));
    }
    if let Some(FnArg::Receiver(receiver)) = signature.inputs.first() {
        return Err(syn::Error::new_spanned(
            receiver,
            "a handler is a plain function, not a method: put what it keeps between records into a `static` or a `thread_local!`",
        ));
    }
    if signature.inputs.is_empty() {
        return Err(syn::Error::new_spanned(
            &signature.ident,
            "a handler takes a record: add an argument such as `order: Json<Order>`, `value: Vec<u8>` or `record: Record`",
        ));
    }
    if signature.inputs.len() > 3 {
        return Err(syn::Error::new_spanned(
            signature.inputs.iter().nth(3),
            "a handler takes at most three arguments: `(body, &Record, &mut Context)`",
        ));
    }
    Ok(())
}

fn export(options: &Options, function: &ItemFn) -> proc_macro2::TokenStream {
    let name = &function.sig.ident;
    let init = match &options.init {
        Some(init) => quote! { ::core::option::Option::Some(#init) },
        None => quote! { ::core::option::Option::None },
    };
    quote! {
        #function

        #[allow(dead_code, unsafe_code, reason = "the component's exports, written by #[handler]")]
        const _: () = {
            use ::tidemill_guest::bindings::exports::tidemill::guest::handler as contract;

            struct Component;

            impl contract::Guest for Component {
                fn init(setup: contract::Setup) -> ::core::result::Result<(), contract::Reason> {
                    ::tidemill_guest::runtime::init(setup, #init)
                }

                fn handle(
                    batch: contract::Batch,
                ) -> ::core::result::Result<::std::vec::Vec<contract::Outcome>, contract::Reason> {
                    ::tidemill_guest::runtime::handle(#name, batch)
                }
            }

            impl ::tidemill_guest::bindings::exports::tidemill::guest::packed_handler::Guest for Component {
                fn handle(
                    topic: ::std::string::String,
                    partition: i32,
                    deadline_ms: u32,
                    delivery: ::std::string::String,
                    records: ::std::vec::Vec<u8>,
                ) -> ::core::result::Result<::std::vec::Vec<u8>, contract::Reason> {
                    ::tidemill_guest::runtime::handle_packed(#name, topic, partition, deadline_ms, delivery, records)
                }
            }

            #[cfg(target_family = "wasm")]
            ::tidemill_guest::bindings::export!(Component with_types_in ::tidemill_guest::bindings);
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_handler_is_told_with_the_way_out() {
        check("async fn h(v: Vec<u8>) {}", "a handler is not `async`: remove the word");
        check("fn h<T>(v: Json<T>) {}", "a handler has no generics: name the type");
        check("fn h(&self, v: Vec<u8>) {}", "put what it keeps between records into a `static`");
        check("fn h() {}", "add an argument such as `order: Json<Order>`");
        check("fn h(a: A, b: B, c: C, d: D) {}", "at most three arguments: `(body, &Record, &mut Context)`");
    }

    #[test]
    fn unknown_options_are_told_with_the_known_one() {
        for options in ["group = x", "7", "init", "init = a, b = c"] {
            let error = syn::parse_str::<Options>(options).err().map(|error| error.to_string());
            assert!(
                error.as_deref().is_some_and(|error| error.contains("`#[handler(init = my_function)]`")),
                "{options}: {error:?}"
            );
        }
        let error = syn::parse_str::<Options>("init = 7").err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("name the function: `#[handler(init = my_function)]`"));
        assert!(syn::parse_str::<Options>("init = module::ready,").is_ok_and(|options| options.init.is_some()));
    }

    #[track_caller]
    fn check(function: &str, expected: &str) {
        let function: ItemFn = syn::parse_str(function).expect("it parses as a function");
        let error = check_message(&function);
        assert!(error.contains(expected), "{error}");
    }

    fn check_message(function: &ItemFn) -> String {
        super::check(function).expect_err("it is refused").to_string()
    }
}
