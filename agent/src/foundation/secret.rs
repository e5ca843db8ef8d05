//! A value that must never be printed: keys, tokens.

use std::fmt;

use zeroize::Zeroize;

/// Holds a secret: no `Display`, a `Debug` without the content, wiped on drop.
///
/// Reading it is spelled [`expose`](Self::expose), so that every use can be found.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes the secret in.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The secret itself. The caller must not log or store it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new([7_u8; 32])), "Secret(…)");
    }
}
