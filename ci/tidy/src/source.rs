//! One file: its text, and the same with comments and literals blanked out, so that rules match code only.

/// A file of the repository.
pub struct Source {
    path: String,
    text: String,
    /// The text with the insides of comments, strings and characters replaced by spaces; lines stay where they are.
    code: String,
    /// For each line, whether it belongs to a test.
    tests: Vec<bool>,
}

/// A place where a rule may be broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word<'a> {
    /// From 1.
    pub line: usize,
    pub word: &'a str,
    /// What precedes and follows it on its line, without the spaces between.
    pub before: &'a str,
    pub after: &'a str,
}

impl Source {
    pub fn new(path: String, text: String) -> Self {
        let code = if path.ends_with(".rs") { blank(&text) } else { text.clone() };
        let tests = mark_tests(&path, &code);
        Self { path, text, code, tests }
    }

    /// From the root of the repository, with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn generated(&self) -> bool {
        self.path.contains("/generated/")
    }

    /// Whether a line (from 1) is of a test.
    pub fn is_test(&self, line: usize) -> bool {
        self.tests.get(line - 1).copied().unwrap_or(false)
    }

    /// Every identifier of the code, tests included.
    pub fn words(&self) -> impl Iterator<Item = Word<'_>> {
        self.code.lines().enumerate().flat_map(|(number, line)| {
            let mut at = 0;
            std::iter::from_fn(move || {
                let start = at + line[at..].find(is_word)?;
                let end = start + line[start..].find(|c| !is_word(c)).unwrap_or(line.len() - start);
                at = end;
                let (before, after) = (line[..start].trim_end(), line[end..].trim_start());
                Some(Word { line: number + 1, word: &line[start..end], before, after })
            })
        })
    }

    /// Identifiers outside of tests.
    pub fn product_words(&self) -> impl Iterator<Item = Word<'_>> {
        self.words().filter(|word| !self.is_test(word.line))
    }

    /// Whether this file is `module`, or in its directory: `net/src/ring` is `net/src/ring.rs`, `net/src/ring/mod.rs` and
    /// everything below `net/src/ring/`.
    pub fn is_in(&self, module: &str) -> bool {
        match self.path.strip_prefix(module) {
            Some(rest) => rest.is_empty() || rest == ".rs" || rest.starts_with('/'),
            None => false,
        }
    }
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Blanks comments and literals. It knows as much of Rust's lexer as that takes.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut previous = ' ';
    while let Some(letter) = rest.chars().next() {
        let hidden = match letter {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            '\'' => character(rest),
            'r' | 'b' | 'c' if !is_word(previous) => literal_with_prefix(rest),
            _ => 0,
        };
        let take = if hidden == 0 { letter.len_utf8() } else { hidden };
        let (part, next) = rest.split_at(take);
        if hidden == 0 {
            out.push(letter);
        } else {
            out.extend(part.chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }));
        }
        previous = if hidden == 0 { letter } else { ' ' };
        rest = next;
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let inside = &text[1..];
    let Some(first) = inside.chars().next() else { return 0 };
    if first == '\\' {
        let after = 2 + inside[1..].chars().next().map_or(0, char::len_utf8);
        return text.get(after..).and_then(|rest| rest.find('\'')).map_or(text.len(), |end| after + end + 1);
    }
    let end = 1 + first.len_utf8();
    if text[end..].starts_with('\'') { end + 1 } else { 0 }
}

/// `b"..."`, `c"..."`, `r"..."`, `r#"..."#`, `br#"..."#` and `b'x'`; 0 for anything else.
fn literal_with_prefix(text: &str) -> usize {
    let letters = text.find(|letter| !matches!(letter, 'r' | 'b' | 'c')).unwrap_or(text.len());
    let (prefix, rest) = text.split_at(letters);
    if !matches!(prefix, "r" | "b" | "c" | "br" | "cr") {
        return 0;
    }
    if !prefix.contains('r') {
        return match rest.chars().next() {
            Some('"') => letters + string(rest),
            Some('\'') if prefix == "b" => letters + character(rest),
            _ => 0,
        };
    }
    let hashes = rest.find(|letter| letter != '#').unwrap_or(rest.len());
    if !rest[hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let from = letters + hashes + 1;
    text[from..].find(&end).map_or(text.len(), |at| from + at + end.len())
}

/// A file of tests or examples is all tests; elsewhere, what `#[cfg(test)]` is put before.
fn mark_tests(path: &str, code: &str) -> Vec<bool> {
    let count = code.lines().count();
    let name = path.rsplit('/').next().unwrap_or(path);
    if name == "tests.rs" || ["/tests/", "/examples/", "/benches/"].iter().any(|part| path.contains(part)) {
        return vec![true; count];
    }
    let mut tests = vec![false; count];
    let lines: Vec<&str> = code.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let attribute = line.trim_start();
        if attribute.starts_with("#[cfg(test)]") || attribute.starts_with("#[cfg(all(test") {
            let end = end_of_item(&lines, number);
            tests[number..=end].fill(true);
        }
    }
    tests
}

/// The last line of the item that begins at line `from`: where its braces close, or its semicolon if it has none.
fn end_of_item(lines: &[&str], from: usize) -> usize {
    let mut depth = 0;
    for (number, line) in lines.iter().enumerate().skip(from) {
        for letter in line.chars() {
            match letter {
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth <= 0 {
                        return number;
                    }
                }
                ';' if depth == 0 => return number,
                _ => {}
            }
        }
    }
    lines.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(code: &str) -> Vec<String> {
        let source = Source::new("x.rs".into(), code.into());
        source.words().map(|word| word.word.to_owned()).collect()
    }

    #[test]
    fn only_code_is_seen() {
        assert_eq!(words("a // b\nc /* d /* e */ f */ g"), ["a", "c", "g"]);
        assert_eq!(
            words(r##"a("b \" c", r#"d " e"#, b"f", br"g\", 'h', '\'', '"', b'i', c"j") k"##),
            ["a", "k"]
        );
        assert_eq!(words("fn f<'a>(x: &'a str) { 'b: loop { break 'b } }").len(), 10);
        assert_eq!(words("r#type rb brown r2"), ["r", "type", "rb", "brown", "r2"]);
        assert_eq!(words("'\\u{1F600}' a 'é' b"), ["a", "b"]);
        assert_eq!(words("unfinished \"string"), ["unfinished"]);
    }

    #[test]
    fn words_know_their_line_and_neighbours() {
        let source = Source::new("x.rs".into(), "\n  std :: fs::File".into());
        let fs = source.words().nth(1).unwrap();
        assert_eq!((fs.line, fs.word, fs.before, fs.after), (2, "fs", "  std ::", "::File"));
    }

    #[test]
    fn tests_are_told_from_product() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { }\n}\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}";
        let source = Source::new("x.rs".into(), text.into());
        let product: Vec<&str> =
            source.product_words().map(|word| word.word).filter(|word| word.len() == 1).collect();
        assert_eq!(product, ["a", "c", "d"]);
        assert_eq!(Source::new("x/tests/y.rs".into(), text.into()).product_words().count(), 0);
    }

    #[test]
    fn a_module_is_a_file_and_a_directory() {
        let is_in = |path: &str| Source::new(path.into(), String::new()).is_in("net/src/ring");
        assert!(is_in("net/src/ring.rs") && is_in("net/src/ring/park.rs"));
        assert!(!is_in("net/src/rings.rs") && !is_in("net/src/other.rs"));
    }
}
