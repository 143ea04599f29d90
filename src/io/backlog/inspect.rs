//! Looking into a backlog while no daemon runs.
