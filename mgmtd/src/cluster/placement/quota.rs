//! How many targets each node carries.

/// As many as any other node, to within one. Only where there are enough domains for all replicas, one that is too large carries less: a
/// domain holds one member of each chain at most, and the others carry the rest.
pub fn quotas(domains: &[usize], replicas: usize, chains: usize) -> Vec<usize> {
    let most = if enough(domains, replicas) { chains } else { usize::MAX };
    let mut out = vec![0; domains.len()];
    let mut open: Vec<usize> = (0..domains.len()).collect();
    let mut left = chains * replicas;
    let count =
        |nodes: &[usize], domain: usize| nodes.iter().filter(|node| domains[**node] == domain).count();
    // With one more domain at its limit the others' share rises, and another one may be over it.
    loop {
        let over = |domain: &usize| left * count(&open, *domain) > most.saturating_mul(open.len());
        let Some(domain) = open.iter().map(|node| domains[*node]).find(over) else { break };
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|node| domains[**node] == domain);
        for (at, node) in full.iter().enumerate() {
            out[*node] = most / full.len() + usize::from(at < most % full.len());
        }
        (left, open) = (left - most, rest);
    }
    let share = left / open.len().max(1);
    open.iter().for_each(|node| out[*node] = share);
    // The remainder goes to the first nodes whose domains have room. They have: none is over its limit by its share, which is no
    // smaller than what it got so far.
    let mut more = left - share * open.len();
    for node in &open {
        let carried: usize =
            open.iter().filter(|other| domains[**other] == domains[*node]).map(|other| out[*other]).sum();
        if more > 0 && carried < most {
            out[*node] += 1;
            more -= 1;
        }
    }
    assert_eq!(more, 0, "the domains have room for all");
    out
}

/// Whether there are as many domains as replicas.
pub fn enough(domains: &[usize], replicas: usize) -> bool {
    // A domain's number is the position of its first room.
    domains.iter().enumerate().filter(|(at, domain)| at == *domain).count() >= replicas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_unless_a_domain_is_too_large() {
        assert_eq!(quotas(&[0, 1, 2, 3], 3, 10), [8, 8, 7, 7]);
        assert_eq!(quotas(&[0, 0, 0, 3], 2, 64), [22, 21, 21, 64], "one copy of each in the small domain");
        assert_eq!(quotas(&[0, 1, 1, 3, 3, 3], 3, 6), [6, 3, 3, 2, 2, 2]);
        assert_eq!(quotas(&[0, 0, 0, 0, 4, 5, 6], 3, 7), [2, 2, 2, 1, 5, 5, 4]);
        assert_eq!(quotas(&[0, 0, 0], 2, 6), [4, 4, 4], "too few domains: as even as without");
        // The remainder passes by a domain that is full.
        assert_eq!(quotas(&[0, 0, 2, 3], 2, 1), [1, 0, 1, 0]);
    }
}
