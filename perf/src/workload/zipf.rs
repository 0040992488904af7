//! Zipf's law: rank k is drawn so often as k^-theta says; and where the ranks are.

use super::{Numbers, mix};

/// Ranks by rejection-inversion (W. Hörmann and G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
/// distributions", ACM TOMACS 6(3), 1996): a handful of floating-point operations a draw, no table, exact for any number of
/// ranks and any exponent above 0. The area under the continuous density is inverted, and what it has too much beside the
/// discrete one is rejected; more than three of four draws are kept.
#[derive(Clone, Debug)]
pub struct Zipf {
    ranks: f64,
    theta: f64,
    /// The integral of the density at the left edge of rank 1, less its own weight.
    low: f64,
    /// The same at the right edge of the last rank.
    high: f64,
    /// Whatever lies so near to its rank is kept without a look at the density.
    near: f64,
}

impl Zipf {
    /// Ranks 0 to `ranks - 1`. `theta` must be above 0.
    pub fn new(ranks: u64, theta: f64) -> Self {
        let ranks = ranks.max(1) as f64;
        let mut zipf = Self { ranks, theta, low: 0.0, high: 0.0, near: 0.0 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(ranks + 0.5);
        zipf.near = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    /// The next rank, from 0.
    #[inline]
    pub fn draw(&self, numbers: &mut Numbers) -> u64 {
        loop {
            let area = self.high + numbers.unit() * (self.low - self.high);
            let x = self.inverse(area);
            let rank = (x + 0.5).floor().clamp(1.0, self.ranks);
            if rank - x <= self.near || area >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64 - 1;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }

    /// An antiderivative of the density: (x^(1 - theta) - 1) / (1 - theta), and ln x where theta is 1.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        expm1_over((1.0 - self.theta) * log) * log
    }

    fn inverse(&self, area: f64) -> f64 {
        // Rounding may lead below the pole.
        let t = (area * (1.0 - self.theta)).max(-1.0);
        (ln1p_over(t) * area).exp()
    }
}

/// (e^x - 1) / x, with its limit near 0.
fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 * (1.0 + x / 3.0) }
}

/// ln(1 + x) / x, with its limit near 0.
fn ln1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

/// Where ranks are: a permutation, so that the hottest aren't neighbours and every place has one rank. A Feistel network of four
/// rounds over the next power of four, walked along until it is inside (Black and Rogaway, "Ciphers with arbitrary
/// finite domains", 2002): at most four steps on average.
#[derive(Clone, Debug)]
pub struct Scatter {
    places: u64,
    half: u32,
    keys: [u64; 4],
}

impl Scatter {
    /// A permutation of 0 to `places - 1`, another for each seed.
    pub fn new(places: u64, seed: u64) -> Self {
        let bits = u64::BITS - places.saturating_sub(1).leading_zeros();
        let keys = [1, 2, 3, 4].map(|round| mix(seed ^ mix(round)));
        Self { places: places.max(1), half: bits.div_ceil(2).max(1), keys }
    }

    /// The place of a rank, which must be below the number of places.
    #[inline]
    pub fn place(&self, rank: u64) -> u64 {
        assert!(rank < self.places, "rank {rank} of {}", self.places);
        let mut at = rank;
        loop {
            at = self.round(at);
            if at < self.places {
                return at;
            }
        }
    }

    fn round(&self, at: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (at >> self.half, at & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The law's own probabilities.
    fn law(ranks: u64, theta: f64) -> Vec<f64> {
        let weights: Vec<f64> = (1..=ranks).map(|rank| (rank as f64).powf(-theta)).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    #[test]
    fn draws_follow_the_law() {
        const DRAWS: u64 = 400_000;
        for (ranks, theta) in [(1, 1.0), (2, 0.5), (10, 0.2), (100, 0.99), (100, 1.0), (1000, 1.2), (50, 3.0)]
        {
            let zipf = Zipf::new(ranks, theta);
            let mut numbers = Numbers::new(7);
            let mut seen = vec![0u64; ranks as usize];
            (0..DRAWS).for_each(|_| seen[zipf.draw(&mut numbers) as usize] += 1);
            for (rank, probability) in law(ranks, theta).into_iter().enumerate() {
                let expected = probability * DRAWS as f64;
                // Five standard deviations, and one for what is rare.
                let off = 5.0 * expected.sqrt() + 1.0;
                let found = seen[rank] as f64;
                assert!((found - expected).abs() <= off, "{ranks} {theta}: rank {rank}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn ranks_beyond_any_table_are_drawn_at_once() {
        let zipf = Zipf::new(1 << 40, 0.99);
        let mut numbers = Numbers::new(1);
        let ranks: Vec<u64> = (0..10_000).map(|_| zipf.draw(&mut numbers)).collect();
        assert!(ranks.iter().all(|rank| *rank < 1 << 40));
        assert!(ranks.contains(&0) && ranks.iter().any(|rank| *rank > 1 << 30));
    }

    #[test]
    fn places_are_a_permutation_without_neighbours() {
        for places in (1..200).chain([1023, 1024, 1025, 5000]) {
            let scatter = Scatter::new(places, 9);
            let mut all: Vec<u64> = (0..places).map(|rank| scatter.place(rank)).collect();
            let near =
                all[..all.len().min(20)].windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
            assert!(places < 1000 || near <= 1, "{places}: {near}");
            all.sort_unstable();
            assert!(all.into_iter().eq(0..places), "{places}");
        }
    }

    proptest! {
        #[test]
        fn any_law_stays_within_its_ranks(ranks in 1..u64::MAX >> 12, theta in 0.01..5.0f64, seed: u64) {
            let (zipf, scatter) = (Zipf::new(ranks, theta), Scatter::new(ranks, seed));
            let mut numbers = Numbers::new(seed);
            for _ in 0..50 {
                let rank = zipf.draw(&mut numbers);
                prop_assert!(rank < ranks && scatter.place(rank) < ranks);
            }
        }
    }
}
