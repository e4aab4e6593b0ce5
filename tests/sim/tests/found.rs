//! Seeds that have found something. What a seed does changes with the simulator, so the bug itself has a test of its own
//! where it was; these cost little and stay.

use errand_sim::{options_of, shrink, simulate};

#[test]
fn seeds_that_have_found_a_bug_find_none() {
    let far = [
        593_122_002_018,
        597_031_000_269,
        597_031_001_055,
        597_031_002_292,
        599_223_014_863,
        865_353_040_937,
        865_353_044_174,
        865_353_046_071,
        868_347_009_678,
        870_196_000_809,
    ];
    for seed in [117, 231, 252, 384, 459, 482, 574, 576, 615, 630, 1013, 1349, 1500, 1530].into_iter().chain(far) {
        let options = options_of(seed);
        let outcome = simulate(options).unwrap();
        if outcome.broken.is_some() {
            panic!("{}", shrink(options, outcome).unwrap());
        }
    }
}
