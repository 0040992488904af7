//! Links in documents lead somewhere: files that are there, headings that are in them. The network isn't asked.

use super::Findings;
use crate::source::Source;
use crate::tree::Tree;

pub fn check(tree: &Tree, findings: &mut Findings) {
    for file in tree.files().filter(|file| file.path().ends_with(".md")) {
        for (line, target) in links(file) {
            findings.checked += 1;
            if let Err(why) = follow(tree, file, &target) {
                findings.at(file, line, format!("({target}): {why}"));
            }
        }
    }
}

/// The targets of a document's links and the lines (from 1) they are in, but for those in code.
fn links(file: &Source) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    for (line, text) in prose(file.text()) {
        let mut rest = text.as_str();
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let Some(end) = rest.find(')') else { break };
            // A title may follow the target.
            let target = rest[..end].split_whitespace().next().unwrap_or_default();
            out.push((line, target.trim_matches(['<', '>']).to_owned()));
            rest = &rest[end..];
        }
        let defined = text.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        if let Some((_, target)) = defined {
            out.push((line, target.split_whitespace().next().unwrap_or_default().to_owned()));
        }
    }
    out
}

/// Lines outside of fences, with code between back-ticks taken out.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let plain: Vec<&str> = line.split('`').step_by(2).collect();
            out.push((number + 1, plain.join(" ")));
        }
    }
    out
}

fn follow(tree: &Tree, from: &Source, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, heading) =
        target.split_once('#').map_or((target, None), |(path, heading)| (path, Some(heading)));
    let path = if path.is_empty() { from.path().to_owned() } else { resolve(from.path(), path)? };
    if !tree.exists(&path) {
        return Err(format!("there is no {path}"));
    }
    let Some(heading) = heading else { return Ok(()) };
    match tree.get(&path) {
        Some(file)
            if path.ends_with(".md") && !anchors(file.text()).iter().any(|anchor| anchor == heading) =>
        {
            Err(format!("{path} has no heading #{heading}"))
        }
        _ => Ok(()),
    }
}

/// A path as seen from a file, from the root.
fn resolve(from: &str, path: &str) -> Result<String, String> {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { from.split('/').collect() };
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => return Err("leads out of the repository".into()),
            ".." => {}
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// The anchors that GitHub gives a document's headings.
fn anchors(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut anchors: Vec<String> = Vec::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().to_lowercase();
        let kept =
            kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
        let anchor: String = kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect();
        let earlier = anchors.iter().filter(|other| **other == anchor).count();
        anchors.push(if earlier == 0 { anchor } else { format!("{anchor}-{earlier}") });
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    const FILES: [(&str, &str); 3] = [
        ("README.md", "# Hello, World!\n[docs](docs/a.md) [rust](wire/src/lib.rs)"),
        ("docs/a.md", "# Who may import whom\n## Who may import whom\n[up](../README.md#hello-world)"),
        ("wire/src/lib.rs", ""),
    ];

    fn with(text: &str) -> Vec<String> {
        let mut files = FILES.to_vec();
        files.push(("docs/b.md", text));
        findings(check, &files)
    }

    #[test]
    fn good_links_are_fine() {
        for text in [
            "[a](a.md) and [b](a.md#who-may-import-whom \"title\") [c](./a.md#who-may-import-whom-1) [d](../wire/src)",
            "[web](https://example.org/x) [mail](mailto:a@example.org) [self](#top)\n# Top",
            "`[code](nowhere.md)`\n```\n[fenced](nowhere.md)\n```\n",
            "[ref]: a.md",
        ] {
            assert!(with(text).is_empty(), "{text}: {:?}", with(text));
        }
    }

    #[test]
    fn broken_links_are_found() {
        for text in [
            "[a](nowhere.md)",
            "[a](a.md#nothing)",
            "[a](#nothing)",
            "[a](../../out.md)",
            "[ref]: gone.md",
            "![p](x.png)",
        ] {
            assert_eq!(with(text).len(), 1, "{text}");
        }
    }
}
