//! Odd and hostile guests, written in the text format and made into components.

/// The component around each of them.
const COMPONENT: &str = include_str!("guest.wat");

/// What a guest is made of: pieces of a core module.
#[derive(Default, Clone, Copy)]
pub(crate) struct Odd {
    /// Further imports of the component.
    pub(crate) imports: &'static str,
    /// Functions and other fields of the module, before everything else.
    pub(crate) fields: &'static str,
    /// What `init` does before it answers `ok`.
    pub(crate) init: &'static str,
    /// What `handle` does before it answers with one `skip` a record; `$records` is their number.
    pub(crate) handle: &'static str,
    /// Added to the number of outcomes.
    pub(crate) surplus: i32,
    /// What makes two otherwise equal guests differ.
    pub(crate) mark: u32,
}

impl Odd {
    /// The component's bytes.
    pub(crate) fn build(self) -> Vec<u8> {
        let module = self.module().replacen("(module", "(core module $main", 1);
        let text = COMPONENT.replace("{module}", &module).replace("{imports}", self.imports);
        wat::parse_str(text).expect("the test's text is a component")
    }

    /// The core module as text. Outcomes lie from 64 KiB on, 32 bytes each; what the host hands in behind 1 MiB.
    pub(crate) fn module(self) -> String {
        let Self { fields, init, handle, surplus, mark, .. } = self;
        format!(
            r#"(module
              {fields}
              (memory (export "memory") 17)
              (data (i32.const 0) "mark {mark}")
              (global $next (mut i32) (i32.const 1048576))
              (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
                (global.set $next (i32.add (local.get $at) (local.get 3)))
                (block $fits
                  (br_if $fits (i32.le_u (global.get $next) (i32.mul (memory.size) (i32.const 65536))))
                  (drop (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536))))))
                (local.get $at))
              (func (export "tidemill:guest/handler@0.1.0#init")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                {init}
                (i32.store8 (i32.const 1024) (i32.const 0))
                (i32.const 1024))
              (func $handle (export "tidemill:guest/handler@0.1.0#handle")
                (param i32 i32 i32 i32 i32 i32 i32) (param $records i32) (param i32 i32) (result i32)
                (local $i i32)
                (local.set $records (i32.add (local.get $records) (i32.const {surplus})))
                (block $filled
                  (loop $fill
                    (br_if $filled (i32.ge_s (local.get $i) (local.get $records)))
                    (i32.store8 (i32.add (i32.const 65536) (i32.mul (local.get $i) (i32.const 32))) (i32.const 1))
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br $fill)))
                {handle}
                (i32.store8 (i32.const 1024) (i32.const 0))
                (i32.store (i32.const 1028) (i32.const 65536))
                (i32.store (i32.const 1032) (local.get $records))
                (i32.const 1024))
              (func (export "cabi_post_tidemill:guest/handler@0.1.0#handle") (param i32)
                (global.set $next (i32.const 1048576))))"#
        )
    }
}
