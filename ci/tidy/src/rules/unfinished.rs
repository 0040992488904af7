//! What is committed is finished.

use super::Findings;
use crate::tree::Tree;

/// Marks of what is not. In two parts, so that this file has none of them.
const MARKS: [(&str, &str); 8] = [
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X:"),
    ("todo", "!("),
    ("todo", "!{"),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("#[ig", "nore]"),
];

pub fn check(tree: &Tree, findings: &mut Findings) {
    for file in tree.files().filter(|file| !file.generated() && !file.path().ends_with(".lock")) {
        findings.checked += 1;
        for (number, line) in file.text().lines().enumerate() {
            for (one, other) in MARKS {
                let mark = format!("{one}{other}");
                if contains_word(line, &mark) {
                    findings.at(file, number + 1, format!("`{mark}`: finish it, or take it out"));
                }
            }
        }
    }
}

/// `mark` in `line`, not as the end of a longer word.
fn contains_word(line: &str, mark: &str) -> bool {
    line.match_indices(mark).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + mark.len()..].chars().next();
        let word =
            |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
        let ends_in_word = mark.chars().next_back().is_some_and(char::is_alphanumeric);
        !(word(before) || ends_in_word && word(after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    #[test]
    fn every_mark_is_found_in_every_kind_of_file() {
        for (one, other) in MARKS {
            let text = format!("fine\n// {one}{other} later");
            for path in ["a/src/b.rs", "docs/x.md", "ci/e2e/y.sh", "ci/test"] {
                let found = findings(check, &[(path, &text)]);
                assert_eq!(found.len(), 1, "{text}");
                assert!(found[0].starts_with(&format!("{path}:2:")));
            }
        }
    }

    #[test]
    fn words_that_only_contain_a_mark_are_fine() {
        assert!(
            findings(check, &[("a/src/b.rs", "MASTODON mastodo!() \"todo\" #[ignore = \"because\"]")])
                .is_empty()
        );
    }
}
