//! The demonstration in somebody's hands: whatever they do by the panel or by keys is done, until they end it.
//!
//! Called by `demo::run`, from the beginning or when somebody has taken over from the story.

use std::time::Duration;

use super::act::Act;
use super::keys;
use super::stage::{Stop, Story};

/// Nobody has to hurry, and nothing is left running for ever.
const ENDS_AFTER: Duration = Duration::from_secs(4 * 3600);

impl Story<'_> {
    /// Does what somebody wants, beginning with `first`, until they have enough; then puts all in order.
    ///
    /// # Errors
    /// In words: what kept it from being brought to its end.
    pub(super) async fn in_hands(&mut self, first: Option<Act>) -> Result<(), Stop> {
        self.is_yours = true;
        // Whatever was interrupted: what is on its way may come again, and what was asked for is not asked for now.
        self.expected.may_repeat = true;
        self.expected.wants_rule = false;
        self.expected.wants_outage = None;
        let keys = if keys::are_heard() { keys::HELP } else { "" };
        self.head(
            "It is yours now",
            format!(
                "Cause what you like, with the panel on the page. \"Finish\" there, or Ctrl-C here, closes the account.\n{keys}"
            )
            .trim_end(),
        );
        if let Some(act) = first {
            self.do_as_wished(act);
        }
        self.until_ended(ENDS_AFTER, |story| story.wants_end)
            .await?;
        self.is_yours = false;
        self.head("Everything is put in order", &Act::Finish.watch());
        self.restore().await
    }
}
