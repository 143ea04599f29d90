//! The search: all orders of events with no detour, then with one, two, three ... until there are as many
//! states as wanted.
//!
//! In the plain order everything that is waited for comes at once, the disk first, and time passes only when
//! nothing is waited for. Every other choice is a detour: an answer that lets another one pass or comes after
//! a deadline, a fault, a command. From each state all detours are tried, as long as the number lasts.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::{Budget, Event, Variant, World};

/// So often a state is played to its end: one that only ever leads round would be found so.
const PLAY_EVERY: usize = 50;

/// A state on the way, and what is still to be tried from it.
struct Open {
    world: World,
    events: Vec<Event>,
    /// The event that led here.
    by: Event,
    /// Detours that are left.
    detours: u32,
}

/// Searches the world with this budget until at least `wanted` states are known, and tells how many there are.
pub fn search(name: &str, budget: &Budget, variant: Variant, wanted: usize) {
    let mut known = 0;
    for detours in 0.. {
        let (states, again, rests) = all_with(budget, variant, detours, wanted);
        let is_cut = states >= wanted;
        let all = if is_cut { "cut" } else { "all" };
        println!(
            "{name}, {detours} detours: {states} states ({all}), {again} reached again, {rests} at rest"
        );
        assert!(rests > 0, "none comes to rest");
        if is_cut || states == known {
            return;
        }
        known = states;
    }
}

/// States, how often one was reached again, and states at rest.
fn all_with(budget: &Budget, variant: Variant, detours: u32, wanted: usize) -> (usize, u64, u64) {
    // By its value, the most detours that were left in a state.
    let mut seen = HashMap::new();
    let (mut again, mut rests) = (0, 0);
    let first = World::begin(budget, variant);
    seen.insert(first.value(), detours);
    let mut way = vec![Open {
        events: first.events(),
        world: first,
        by: Event::Tick,
        detours,
    }];
    while let Some(open) = way.last_mut() {
        let Some(event) = open.events.pop() else {
            way.pop();
            continue;
        };
        let is_detour = event != open.world.plain();
        if is_detour && open.detours == 0 {
            continue;
        }
        let detours = open.detours - u32::from(is_detour);
        let mut world = open.world.clone();
        checked(&way, event, || world.happen(event));
        let value = world.value();
        if seen.get(&value).is_some_and(|left| *left >= detours) {
            again += 1;
            continue;
        }
        if !seen.contains_key(&value) && seen.len() >= wanted {
            break;
        }
        seen.insert(value, detours);
        if world.is_at_rest() {
            rests += 1;
            checked(&way, event, || world.compare_the_books());
        } else if seen.len().is_multiple_of(PLAY_EVERY) {
            let end = world.clone();
            checked(&way, event, || end.play_to_the_end());
        }
        way.push(Open {
            events: world.events(),
            world,
            by: event,
            detours,
        });
    }
    (seen.len(), again, rests)
}

/// Does it; what fails is told with the events that led there.
fn checked(way: &[Open], event: Event, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        let mut path: Vec<Event> = way.iter().skip(1).map(|open| open.by).collect();
        path.push(event);
        panic!("a promise is broken after {path:?}");
    }
}
