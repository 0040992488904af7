//! The rules, one file each.

mod dependencies;
mod errno;
mod imports;
mod length;
mod links;
mod machine;
mod purity;
mod sharing;
mod unfinished;
mod unsafety;

use crate::source::Source;
use crate::tree::Tree;

/// What a rule looked at and found.
#[derive(Default)]
pub struct Findings {
    /// How many files, imports or links: a rule that looked at nothing proves nothing.
    pub checked: usize,
    pub found: Vec<String>,
}

pub type Rule = fn(&Tree, &mut Findings);

/// Every rule by name.
pub const ALL: [(&str, Rule); 10] = [
    ("imports", imports::check),
    ("sharing", sharing::check),
    ("purity", purity::check),
    ("unsafe", unsafety::check),
    ("errno", errno::check),
    ("length", length::check),
    ("dependencies", dependencies::check),
    ("unfinished", unfinished::check),
    ("machine", machine::check),
    ("links", links::check),
];

impl Findings {
    /// Something is wrong in a line (from 1) of a file.
    pub fn at(&mut self, file: &Source, line: usize, what: impl std::fmt::Display) {
        self.found.push(format!("{}:{line}: {what}", file.path()));
    }

    /// A list of exceptions names files that need no exception (any more): it would hide the next one.
    pub fn stale(&mut self, rule: &str, used: &[&str], listed: &[(&str, &str)], tree: &Tree) {
        for (module, _) in listed {
            // A crate that isn't there at all is another tree's business.
            let crate_there = module.split_once('/').is_some_and(|(name, _)| tree.exists(name));
            if crate_there && !used.contains(module) {
                self.found.push(format!(
                    "ci/tidy/src/rules/{rule}.rs:1: {module} needs no exception: take it out of the list"
                ));
            }
        }
    }
}

/// The findings of one rule on a tree out of thin air.
#[cfg(test)]
fn findings(rule: Rule, files: &[(&str, &str)]) -> Vec<String> {
    let mut findings = Findings::default();
    rule(&Tree::of(files), &mut findings);
    findings.found
}
