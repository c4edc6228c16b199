//! The list of all tests, filled at link time: each `test!` in `areas/` adds itself.

use crate::test::Test;

/// What a test function returns: an error, whatever it is, is a failure, except [`crate::test::Skip`].
pub(crate) type Result<T = ()> = anyhow::Result<T>;

/// One test as `test!` registers it.
pub(crate) struct Registered {
    /// Path of the module the test stands in.
    module: &'static str,
    /// The function's name: a sentence.
    pub(crate) name: &'static str,
    /// The test itself.
    pub(crate) run: fn(&Test) -> Result,
}

inventory::collect!(Registered);

impl Registered {
    /// What `test!` calls; `module` is `module_path!()` of the caller.
    pub(crate) const fn new(module: &'static str, name: &'static str, run: fn(&Test) -> Result) -> Self {
        Self { module, name, run }
    }

    /// The area is the file the test stands in: `areas/lifecycle.rs` is `lifecycle`.
    pub(crate) fn area(&self) -> &'static str {
        self.module.rsplit("::").next().unwrap_or(self.module)
    }

    /// `area/name`, as it is printed and filtered.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.area(), self.name)
    }
}

/// All tests, sorted by path so that the order does not depend on the linker.
pub(crate) fn all() -> Vec<&'static Registered> {
    let mut tests: Vec<_> = inventory::iter::<Registered>.into_iter().collect();
    tests.sort_by_key(|test| test.path());
    tests
}

/// Declares and registers a test: `test!(fn a_sentence(t: &Test) -> Result { ...; Ok(()) });`
/// (in parentheses, not braces: so rustfmt formats the body).
#[macro_export]
macro_rules! test {
    ($(#[$meta:meta])* fn $name:ident($t:ident: &Test $(,)?) -> Result $body:block) => {
        $(#[$meta])*
        fn $name($t: &$crate::test::Test) -> $crate::registry::Result {
            $body
        }
        inventory::submit! { $crate::registry::Registered::new(module_path!(), stringify!($name), $name) }
    };
}
