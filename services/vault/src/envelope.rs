//! Envelope encryption: a credential's secrets are sealed with a key of their own, and that one with the master key.
//! Changing the master key then touches nothing but the small keys.

use errand_core::CredentialId;
use errand_seal::{Keyring, SealError, new_key};
use errand_secret::Secrets;

/// Secrets as the store keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The credential's own key, sealed with the master key.
    pub data_key: Vec<u8>,
    /// The secrets, sealed with the credential's own key.
    pub secrets: Vec<u8>,
}

/// Each part is bound to its credential and to its place.
fn of(id: CredentialId, part: &str) -> Vec<u8> {
    format!("{id}\0{part}").into_bytes()
}

impl Sealed {
    /// Seals with a new key.
    ///
    /// # Errors
    /// [`SealError::TooLarge`].
    pub fn seal(master: &Keyring, id: CredentialId, secrets: &Secrets) -> Result<Self, SealError> {
        let key = new_key();
        Ok(Self {
            data_key: master.seal(key.as_bytes(), &of(id, "data key"))?,
            secrets: Keyring::parse(&key)?.seal(&secrets.encode(), &of(id, "secrets"))?,
        })
    }

    /// Opens them.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, master: &Keyring, id: CredentialId) -> Result<Secrets, SealError> {
        let key = master.open(&self.data_key, &of(id, "data key"))?;
        let key = Keyring::parse(std::str::from_utf8(&key).map_err(|_| SealError::Form)?)?;
        let plain = key.open(&self.secrets, &of(id, "secrets"))?;
        Secrets::decode(&plain).map_err(|_| SealError::Form)
    }
}

/// A sealed data key under the newest master key; none where it is already.
///
/// # Errors
/// [`SealError`].
pub fn reseal_key(master: &Keyring, id: CredentialId, data_key: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
    if master.is_newest(data_key) {
        return Ok(None);
    }
    let key = master.open(data_key, &of(id, "data key"))?;
    master.seal(&key, &of(id, "data key")).map(Some)
}

#[cfg(test)]
mod tests {
    use errand_secret::SecretText;
    use uuid::Uuid;

    use super::*;

    fn id() -> CredentialId {
        CredentialId::from_uuid(Uuid::now_v7())
    }

    #[test]
    fn secrets_open_for_their_credential_under_any_key_of_the_ring() {
        let secrets = Secrets { api_key: Some(SecretText::new("k-1".into())), ..Secrets::default() };
        let (old, new, id) = (new_key(), new_key(), id());
        let before = Keyring::parse(&old).unwrap();
        let mut sealed = Sealed::seal(&before, id, &secrets).unwrap();
        assert_eq!(sealed.open(&before, id).unwrap(), secrets);
        assert_eq!(sealed.open(&before, self::id()).unwrap_err(), SealError::Forged);
        assert_eq!(reseal_key(&before, id, &sealed.data_key).unwrap(), None);

        let both = Keyring::parse(&format!("{} {}", *new, *old)).unwrap();
        sealed.data_key = reseal_key(&both, id, &sealed.data_key).unwrap().unwrap();
        let after = Keyring::parse(&new).unwrap();
        assert_eq!(sealed.open(&after, id).unwrap(), secrets);
        assert!(matches!(sealed.open(&before, id), Err(SealError::UnknownKey(_))));
    }

    #[test]
    fn a_part_of_one_credential_does_not_open_with_another_ones() {
        let master = Keyring::parse(&new_key()).unwrap();
        let (id, secrets) = (id(), Secrets::default());
        let (one, other) = (Sealed::seal(&master, id, &secrets).unwrap(), Sealed::seal(&master, id, &secrets).unwrap());
        let mixed = Sealed { data_key: one.data_key, secrets: other.secrets };
        assert!(mixed.open(&master, id).is_err());
    }
}
