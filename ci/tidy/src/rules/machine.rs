//! Nothing that is committed depends on whose machine it was written on.

use super::Findings;
use crate::tree::Tree;

/// Directories of somebody's machine, in parts, so that this file names none.
const PLACES: [&[&str]; 5] =
    [&["/ro", "ot/"], &["/ho", "me/"], &["/wo", "rk/"], &["/fa", "rm/"], &["/Us", "ers/"]];

pub fn check(tree: &Tree, findings: &mut Findings) {
    let places = PLACES.map(|parts| parts.concat());
    for file in tree.files() {
        findings.checked += 1;
        for (number, line) in file.text().lines().enumerate() {
            for place in &places {
                if line.match_indices(place.as_str()).any(|(at, _)| starts_path(&line[..at])) {
                    findings.at(file, number + 1, format!("{place}: a path of one machine"));
                }
            }
        }
    }
}

/// Whether what follows `before` begins a path, rather than going on with one: `$dir/x/` and `a/b/` go on.
fn starts_path(before: &str) -> bool {
    before.chars().next_back().is_none_or(|letter| !(letter.is_alphanumeric() || "_-.})".contains(letter)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    #[test]
    fn paths_of_a_machine_are_found_and_parts_of_others_are_not() {
        for parts in PLACES {
            let place = parts.concat();
            for text in [format!("cd {place}x"), format!("\"{place}x\""), format!("({place}y)")] {
                assert_eq!(findings(check, &[("docs/x.md", &text)]).len(), 1, "{text}");
            }
            for text in [format!("$dir{place}x"), format!("${{dir}}{place}x"), format!("net{place}x")] {
                assert!(findings(check, &[("ci/x.sh", &text)]).is_empty(), "{text}");
            }
        }
    }
}
