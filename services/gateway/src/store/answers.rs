use errand_core::Tenant;
use errand_store::StoreError;
use uuid::Uuid;

use super::{Store, on_db};

/// An answer that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its status.
    pub status: u16,
    /// Its body, as it was or sealed.
    pub body: Vec<u8>,
    /// Whether it is sealed.
    pub sealed: bool,
}

/// What became of claiming an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The request is this caller's to do. What it makes takes its id from the seed, so that a repetition of what was
    /// cut off makes nothing twice.
    Mine {
        /// By which the claim is given back.
        holder: Uuid,
        /// For ids.
        seed: Uuid,
    },
    /// It was done.
    Done(Remembered),
    /// Another one does it now.
    Busy,
    /// The key was used for another request.
    Other,
}

type Row = (Vec<u8>, Vec<u8>, Vec<u8>, i64, i64, Option<i64>, i64, Option<Vec<u8>>);

/// How often a claim is tried that others keep changing.
const TRIES: usize = 5;

impl Store {
    /// Claims a key for a request until a time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim(
        &self,
        tenant: &Tenant,
        key: &[u8; 32],
        request: &[u8; 32],
        (now, until, forget): (i64, i64, i64),
    ) -> Result<Claim, StoreError> {
        for _ in 0..TRIES {
            let (holder, seed) = (Uuid::now_v7(), Uuid::now_v7());
            if self.insert_claim(tenant, key, request, (holder, seed), (now, until)).await? {
                return Ok(Claim::Mine { holder, seed });
            }
            let Some(row) = self.claim_row(tenant, key).await? else { continue };
            let (found, old_seed, old_holder, claimed_until, created_at, status, sealed, body) = row;
            if created_at < forget {
                self.drop_claim(tenant, key, &old_holder).await?;
                continue;
            }
            if let (Some(status), Some(body)) = (status, body) {
                if found != request {
                    return Ok(Claim::Other);
                }
                let status = u16::try_from(status).map_err(|_| StoreError::Corrupt("a status".into()))?;
                return Ok(Claim::Done(Remembered { status, body, sealed: sealed != 0 }));
            }
            if claimed_until > now {
                return Ok(if found == request { Claim::Busy } else { Claim::Other });
            }
            // Whoever held it is gone, or does not know what became of it.
            if found != request {
                self.drop_claim(tenant, key, &old_holder).await?;
                continue;
            }
            if self.take_over(tenant, key, &old_holder, holder, until).await? {
                let seed = Uuid::from_slice(&old_seed).map_err(|_| StoreError::Corrupt("a seed".into()))?;
                return Ok(Claim::Mine { holder, seed });
            }
        }
        Ok(Claim::Busy)
    }

    async fn insert_claim(
        &self,
        tenant: &Tenant,
        key: &[u8; 32],
        request: &[u8; 32],
        (holder, seed): (Uuid, Uuid),
        (now, until): (i64, i64),
    ) -> Result<bool, StoreError> {
        let sql = "INSERT INTO idempotency (tenant, key_hash, request_hash, seed, holder, claimed_until, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
        macro_rules! bound {
            () => {
                sqlx::query(sql)
                    .bind(tenant.as_str().to_owned())
                    .bind(key.to_vec())
                    .bind(request.to_vec())
                    .bind(seed.as_bytes().to_vec())
                    .bind(holder.as_bytes().to_vec())
                    .bind(until)
                    .bind(now)
            };
        }
        let changed = on_db!(&self.db, write bound!() => execute_count)?;
        Ok(changed == 1)
    }

    async fn claim_row(&self, tenant: &Tenant, key: &[u8; 32]) -> Result<Option<Row>, StoreError> {
        let sql = "SELECT request_hash, seed, holder, claimed_until, created_at, status, sealed, body
            FROM idempotency WHERE tenant = $1 AND key_hash = $2";
        let tenant = tenant.as_str().to_owned();
        Ok(on_db!(&self.db, read sqlx::query_as(sql).bind(tenant).bind(key.to_vec()) => fetch_optional)?)
    }

    async fn take_over(
        &self,
        tenant: &Tenant,
        key: &[u8; 32],
        old: &[u8],
        holder: Uuid,
        until: i64,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE idempotency SET holder = $1, claimed_until = $2
            WHERE tenant = $3 AND key_hash = $4 AND holder = $5 AND status IS NULL";
        macro_rules! bound {
            () => {
                sqlx::query(sql)
                    .bind(holder.as_bytes().to_vec())
                    .bind(until)
                    .bind(tenant.as_str().to_owned())
                    .bind(key.to_vec())
                    .bind(old.to_vec())
            };
        }
        Ok(on_db!(&self.db, write bound!() => execute_count)? == 1)
    }

    /// Remembers the answer to what was claimed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remember(
        &self,
        tenant: &Tenant,
        key: &[u8; 32],
        holder: Uuid,
        answer: Remembered,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE idempotency SET status = $1, sealed = $2, body = $3
            WHERE tenant = $4 AND key_hash = $5 AND holder = $6";
        macro_rules! bound {
            () => {
                sqlx::query(sql)
                    .bind(i64::from(answer.status))
                    .bind(i64::from(answer.sealed))
                    .bind(answer.body.clone())
                    .bind(tenant.as_str().to_owned())
                    .bind(key.to_vec())
                    .bind(holder.as_bytes().to_vec())
            };
        }
        on_db!(&self.db, write bound!() => execute_count)?;
        Ok(())
    }

    /// Ends a claim whose request was not done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abandon(&self, tenant: &Tenant, key: &[u8; 32], holder: Uuid) -> Result<(), StoreError> {
        self.drop_claim(tenant, key, holder.as_bytes()).await
    }

    async fn drop_claim(&self, tenant: &Tenant, key: &[u8; 32], holder: &[u8]) -> Result<(), StoreError> {
        let sql = "DELETE FROM idempotency WHERE tenant = $1 AND key_hash = $2 AND holder = $3";
        let tenant = tenant.as_str().to_owned();
        on_db!(&self.db, write
            sqlx::query(sql).bind(tenant).bind(key.to_vec()).bind(holder.to_vec()) => execute_count)?;
        Ok(())
    }

    /// Lets a claim go whose request may have been done: the next one does it again with the same seed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn let_go(&self, tenant: &Tenant, key: &[u8; 32], holder: Uuid) -> Result<(), StoreError> {
        let sql = "UPDATE idempotency SET claimed_until = 0 WHERE tenant = $1 AND key_hash = $2 AND holder = $3";
        let (tenant, holder) = (tenant.as_str().to_owned(), holder.as_bytes().to_vec());
        on_db!(&self.db, write sqlx::query(sql).bind(tenant).bind(key.to_vec()).bind(holder) => execute_count)?;
        Ok(())
    }

    /// Forgets what is older than a time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_answers(&self, before: i64) -> Result<u64, StoreError> {
        let sql = "DELETE FROM idempotency WHERE created_at < $1";
        Ok(on_db!(&self.db, write sqlx::query(sql).bind(before) => execute_count)?)
    }
}
