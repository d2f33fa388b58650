//! The service manager's watchdog (sd_notify(3), `WatchdogSec=`): it is told that the agent works as long as every thread
//! does that the agent cannot do without.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, warn};

use crate::heartbeat::Heartbeat;

/// Notifies the service manager, if it asked for that. Runs until the agent ends.
pub(super) async fn run(heartbeats: Vec<Arc<Heartbeat>>) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    // Half of the limit, as sd_watchdog_enabled(3) recommends.
    let mut ticks = interval(limit / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let overdue = heartbeats.iter().find_map(|it| Some((it.name, it.overdue()?)));
        if let Some((thread, busy)) = overdue {
            error!(
                thread,
                "works on one thing for {} s; the service manager is not notified",
                busy.as_secs()
            );
        } else if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]) {
            warn!("Cannot notify the service manager's watchdog: {error}");
        }
    }
}
