//! A delivery's id holds its place in the store, so that no index of ids is needed: one less write per delivery.

use errand_core::{DeliveryId, Timestamp};
use uuid::Uuid;

const POSITION_BITS: u32 = 62;
const VERSION_7: u128 = 7 << 76;
const VARIANT: u128 = 0b10 << POSITION_BITS;

/// The id of the delivery at a position: a UUID of version 7 whose random part is the position.
#[must_use]
pub fn delivery_id(position: i64, created_at: Timestamp) -> DeliveryId {
    let millis = u128::from(created_at.0.unsigned_abs()) & ((1 << 48) - 1);
    let place = u128::from(position.unsigned_abs()) & ((1 << POSITION_BITS) - 1);
    DeliveryId::from_uuid(Uuid::from_u128((millis << 80) | VERSION_7 | VARIANT | place))
}

/// The position that an id holds, where it is one of ours. Check `created_at` with [`delivery_id`].
#[must_use]
pub fn position_of(id: Uuid) -> i64 {
    let place = id.as_u128() & ((1 << POSITION_BITS) - 1);
    i64::try_from(place).unwrap_or(i64::MAX)
}
