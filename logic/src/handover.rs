//! What a run leaves to the next one of the same boot: the lease, who decided about the LED and why, the ids of
//! commands, and the account of an outage that is not over. The shell keeps it in memory (never on the card) and
//! gives it back at the next start, so that an upgrade or a crash moves no LED, obeys no command twice, and takes
//! nothing from the report of an outage.
//!
//! After a reboot it counts for nothing: the boot clock starts again, and the LED with it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::command::KeptCommands;
use super::lighting::KeptDecision;
use super::outage::KeptOutage;
use super::time::Now;

/// The state of one run at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The start of the machine.
    pub boot_id: Uuid,
    /// When it was written, on the boot clock.
    pub written: Duration,
    /// The LED.
    pub decision: KeptDecision,
    /// The commands.
    pub commands: KeptCommands,
    /// The outage that is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<KeptOutage>,
}

impl Handover {
    /// Whether a run that begins `now` may go on from it.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(&self, boot_id: Uuid, now: Now) -> Result<(), &'static str> {
        if self.boot_id != boot_id {
            return Err("it is of an earlier boot");
        }
        let outage = self.outage.as_ref();
        let sound = self.written <= now.boot
            && self.decision.is_sound(self.written)
            && self.commands.is_sound()
            && outage.is_none_or(|outage| outage.is_sound(self.written));
        match sound {
            true => Ok(()),
            false => Err("it is damaged"),
        }
    }
}
