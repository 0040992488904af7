//! Latencies: one histogram a core, merged at the end, so that recording shares nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

/// Longest latency told apart from longer ones (nanoseconds): ten minutes.
pub const LATENCY_MAX_NS: u64 = 600 * 1_000_000_000;
/// Decimal digits kept: a figure is off by at most 0.1%.
const DIGITS: u8 = 3;

/// Latencies of one core, or of all after [`merge`](Self::merge). Recording allocates nothing: the size is fixed.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    clamped: u64,
}

/// Some of the latencies, for drawing: `from_ns <= latency < to_ns`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bucket {
    pub from_ns: f64,
    pub to_ns: f64,
    pub count: u64,
}

/// What a histogram holds, without its empty places: latencies (nanoseconds) and how often each was seen, ascending.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts(Vec<(u64, u64)>);

impl Counts {
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.0.len().max(other.0.len()));
        let (mut one, mut two) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (one.peek(), two.peek()) {
            let next = if a.0 <= b.0 { one.next() } else { two.next() };
            push(&mut merged, next.copied());
        }
        one.chain(two).for_each(|rest| push(&mut merged, Some(*rest)));
        self.0 = merged;
    }
}

fn push(counts: &mut Vec<(u64, u64)>, next: Option<(u64, u64)>) {
    let Some((latency, count)) = next else { return };
    match counts.last_mut() {
        Some(last) if last.0 == latency => last.1 += count,
        _ => counts.push((latency, count)),
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    pub fn new() -> Self {
        let mut histogram = match Histogram::new_with_bounds(1, LATENCY_MAX_NS, DIGITS) {
            Ok(histogram) => histogram,
            Err(error) => unreachable!("constant bounds are valid: {error}"),
        };
        histogram.auto(false);
        Self { histogram, clamped: 0 }
    }

    /// Counts a latency (nanoseconds). One above [`LATENCY_MAX_NS`] counts as that, and among the clamped.
    #[inline]
    pub fn record(&mut self, latency_ns: u64) {
        self.record_n(latency_ns, 1);
    }

    /// Counts `count` operations that took equally long: the blocks of a batch.
    #[inline]
    pub fn record_n(&mut self, latency_ns: u64, count: u64) {
        if latency_ns > LATENCY_MAX_NS {
            self.clamped += count;
        }
        self.histogram.saturating_record_n(latency_ns.max(1), count);
    }

    /// Adds what another core counted.
    pub fn merge(&mut self, other: &Self) {
        self.clamped += other.clamped;
        // Both have the same constant bounds, so nothing can be out of range.
        self.histogram.add(&other.histogram).unwrap_or_else(|error| unreachable!("equal bounds: {error}"));
    }

    /// What was counted, for keeping.
    pub fn counts(&self) -> Counts {
        let seen = self.histogram.iter_recorded();
        Counts(seen.map(|value| (value.value_iterated_to(), value.count_since_last_iteration())).collect())
    }

    /// Adds what was kept.
    pub fn add(&mut self, counts: &Counts) {
        counts.0.iter().for_each(|(latency_ns, count)| self.record_n(*latency_ns, *count));
    }

    /// Says how many of those that were added had been longer than [`LATENCY_MAX_NS`].
    pub fn note_clamped(&mut self, count: u64) {
        self.clamped = count;
    }

    /// Begins again; what was clamped is forgotten too.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.clamped = 0;
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The histogram itself, for those who write it elsewhere.
    pub fn as_histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// HdrHistogram's compressed encoding V2 (nanoseconds) in base64, which its libraries in other languages read.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::new();
        match V2DeflateSerializer::new().serialize(&self.histogram, &mut bytes) {
            Ok(_) => BASE64.encode(bytes),
            Err(error) => unreachable!("a histogram of this size can be written to memory: {error}"),
        }
    }

    /// What [`encode`](Self::encode), or another library, wrote; in words why it isn't that.
    pub fn decode(text: &str) -> Result<Self, String> {
        let bytes = BASE64.decode(text).map_err(|error| error.to_string())?;
        let read: Histogram<u64> =
            Deserializer::new().deserialize(&mut &bytes[..]).map_err(|error| error.to_string())?;
        // Others may have had other bounds.
        let mut latencies = Self::new();
        for value in read.iter_recorded() {
            latencies.record_n(value.value_iterated_to(), value.count_since_last_iteration());
        }
        Ok(latencies)
    }

    /// How many were longer than [`LATENCY_MAX_NS`].
    pub fn clamped(&self) -> u64 {
        self.clamped
    }

    /// The latency that `quantile` (0 to 1) of all don't exceed, in microseconds. `None` when nothing was counted.
    pub fn quantile_us(&self, quantile: f64) -> Option<f64> {
        (self.count() > 0)
            .then(|| self.histogram.value_at_quantile(quantile).min(self.histogram.max()) as f64 / 1e3)
    }

    pub fn max_us(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.histogram.max() as f64 / 1e3)
    }

    pub fn mean_us(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.histogram.mean() / 1e3)
    }

    /// Counts by logarithmic classes, `per_octave` of them for each doubling, from the first to the last that isn't empty.
    pub fn buckets(&self, per_octave: u32) -> Vec<Bucket> {
        let per_octave = f64::from(per_octave.max(1));
        let class = |ns: u64| (((ns.max(1)) as f64).log2() * per_octave).floor() as i64;
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut first = 0;
        for value in self.histogram.iter_recorded() {
            let of = class(value.value_iterated_to());
            if buckets.is_empty() {
                first = of;
            }
            while buckets.len() as i64 <= of - first {
                let number = (first + buckets.len() as i64) as f64;
                let edge = |number: f64| (number / per_octave).exp2();
                buckets.push(Bucket { from_ns: edge(number), to_ns: edge(number + 1.0), count: 0 });
            }
            if let Some(last) = buckets.last_mut() {
                last.count += value.count_since_last_iteration();
            }
        }
        buckets
    }
}

/// How a row's latencies are written in JSON: as [`Latencies::encode`] does.
pub mod encoded {
    use super::Latencies;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(latencies: &Option<Latencies>, to: S) -> Result<S::Ok, S::Error> {
        match latencies {
            Some(latencies) => to.serialize_str(&latencies.encode()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Latencies>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let wrong = |why| D::Error::custom(format!("`histogram` is no HdrHistogram: {why}"));
        text.map(|text| Latencies::decode(&text).map_err(wrong)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn merged_cores_are_one_distribution() {
        let (mut one, mut two) = (Latencies::new(), Latencies::new());
        for us in 1..=500 {
            one.record(us * 1000);
            two.record((500 + us) * 1000);
        }
        one.merge(&two);
        assert_eq!(one.count(), 1000);
        let close = |figure: Option<f64>, wanted: f64| (figure.unwrap() - wanted).abs() <= wanted * 0.002;
        assert!(close(one.quantile_us(0.5), 500.0) && close(one.quantile_us(0.99), 990.0), "{one:?}");
        assert!(close(one.max_us(), 1000.0) && close(one.mean_us(), 500.5));
    }

    #[test]
    fn nothing_recorded_is_not_zero() {
        let empty = Latencies::new();
        assert_eq!((empty.quantile_us(0.5), empty.max_us(), empty.mean_us()), (None, None, None));
        assert!(empty.buckets(2).is_empty());
    }

    #[test]
    fn what_is_too_long_is_clamped_and_counted() {
        let mut latencies = Latencies::new();
        latencies.record_n(u64::MAX, 3);
        latencies.record(0);
        assert_eq!((latencies.clamped(), latencies.count()), (3, 4));
        let mut other = Latencies::new();
        other.merge(&latencies);
        assert_eq!(other.clamped(), 3);
    }

    #[test]
    fn buckets_hold_everything_once_in_order() {
        let mut latencies = Latencies::new();
        for exponent in 0..30 {
            latencies.record_n(1 << exponent, exponent + 1);
        }
        let buckets = latencies.buckets(2);
        assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<u64>(), latencies.count());
        assert!(buckets.windows(2).all(|pair| pair[0].to_ns == pair[1].from_ns));
        assert!(buckets[0].count > 0 && buckets[buckets.len() - 1].count > 0);
    }

    #[test]
    fn garbage_is_no_histogram() {
        for text in ["", "!", "AAAA", "HISTFAAAABw", &BASE64.encode([0x1c, 0x84, 0x93, 0x14, 0, 0, 0, 9, 1])]
        {
            assert!(Latencies::decode(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// Whatever way latencies go, kept and added or written and read, they come out as they were.
        #[test]
        fn nothing_is_lost_on_the_way(
            one in proptest::collection::vec((0..LATENCY_MAX_NS, 1..1000u64), 0..60),
            two in proptest::collection::vec((0..LATENCY_MAX_NS, 1..1000u64), 0..60),
        ) {
            let of = |all: &[(u64, u64)]| {
                let mut latencies = Latencies::new();
                all.iter().for_each(|(ns, count)| latencies.record_n(*ns, *count));
                latencies
            };
            let (mut all, other) = (of(&one), of(&two));
            let mut counts = all.counts();
            counts.merge(&other.counts());
            all.merge(&other);
            prop_assert_eq!(counts.total(), all.count());
            let mut added = Latencies::new();
            added.add(&counts);
            for back in [added, Latencies::decode(&all.encode()).unwrap()] {
                prop_assert_eq!(back.counts(), all.counts());
                prop_assert_eq!(back.max_us(), all.max_us());
                prop_assert_eq!(back.mean_us(), all.mean_us());
                prop_assert_eq!(back.quantile_us(0.99), all.quantile_us(0.99));
            }
        }
    }
}
