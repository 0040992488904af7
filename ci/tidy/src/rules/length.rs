//! A file is one idea and reads in one sitting.

use super::Findings;
use crate::tree::Tree;

/// Lines of the longest file. Most have less than half of it.
const LINES_MAX: usize = 900;

pub fn check(tree: &Tree, findings: &mut Findings) {
    let written =
        |path: &str| !path.ends_with(".lock") && !path.ends_with(".md") && !path.contains("/generated/");
    for file in tree.files().filter(|file| written(file.path())) {
        findings.checked += 1;
        let lines = file.text().lines().count();
        if lines > LINES_MAX {
            findings.at(
                file,
                LINES_MAX,
                format!("{lines} lines, more than {LINES_MAX}: which ideas are these?"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    #[test]
    fn long_files_are_found_unless_generated() {
        let long = "x\n".repeat(LINES_MAX + 1);
        let found =
            findings(check, &[("a/src/b.rs", &long), ("ci/test", &long), ("a/src/generated/c.rs", &long)]);
        assert_eq!(found.len(), 2);
        assert!(findings(check, &[("a/src/b.rs", &"x\n".repeat(LINES_MAX))]).is_empty());
    }
}
