//! A test process to be killed: starts a broker and a Postgres, tells where they are, and holds them until it is ended
//! in a way that drops nothing.

use errand_tests::{Broker, Postgres, root};

fn main() {
    let (broker, postgres) = (Broker::start(), Postgres::shared());
    let pids = [broker.pid(), postgres.pid()].map(|pid| pid.expect("it runs"));
    println!("{} {} {}", pids[0], pids[1], root().display());
    loop {
        std::thread::park();
    }
}
