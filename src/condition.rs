//! Conditions on the settings and results of a run, and on the rows of a table: comparisons joined by `and`. They select runs
//! and rows (`--where`), exclude rows of a grid (`exclude`, `when`) and stop runs (`stop_when`).
//!
//! ```text
//! condition  = comparison { "and" comparison }
//! comparison = value operator value        operator: = (or ==), !=, <, <=, >, >=
//! value      = name | number | number * name | name * number | text | list
//! list       = value "," value { "," value }       after = and !=: equal to one of them, to none of them
//! ```
//!
//! Text is quoted where it has spaces, operators, commas or the name of a setting. Two numbers are compared as numbers, also where a
//! setting holds a number as text. Everything else is equal or not, and is neither smaller nor larger. A comparison with an
//! absent value is false, and `!=` is always the opposite of `=`.
//!
//! ```
//! use nmem::condition::{Condition, Value};
//!
//! let condition = Condition::parse("decay < 0.5 and model != mlp", &["decay", "model"]).unwrap();
//! assert!(condition.holds(&|name| match name {
//!     "decay" => Some(Value::Number(0.1)),
//!     _ => Some(Value::Text("linear")),
//! }));
//! ```

use std::cmp::Ordering;
use std::fmt;

use crate::config::nearest;

/// Comparisons that must all hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition(Vec<Comparison>);

#[derive(Clone, Debug, PartialEq)]
struct Comparison {
    left: Operand,
    operator: Operator,
    /// One value, or several after `=` and `!=`.
    right: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Number(f64),
    Text(String),
    /// Value of a name, multiplied by a factor where there is one.
    Named(String, Option<f64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Value of a setting or a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A number.
    Number(f64),
    /// Text, which may be that of a number.
    Text(&'a str),
}

impl<'a> Value<'a> {
    fn number(self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(text) => text.parse().ok(),
        }
    }

    fn text(self) -> Option<&'a str> {
        match self {
            Self::Number(_) => None,
            Self::Text(text) => Some(text),
        }
    }
}

/// Operators, those that begin with another one first.
const OPERATORS: [(&str, Operator); 7] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

/// Form of a comparison, for messages.
const USAGE: &str =
    "a comparison such as `seed < 3` or `loss_before > 10 * loss`, or several joined by `and`";

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Quoted(String),
    Operator(Operator),
    Times,
    Comma,
}

impl Condition {
    /// Parses a condition on the names in `known` and on notes, whose names begin with `_`. The error says what was expected
    /// and what was found.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let is_and = |token: &Token| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case("and"));
        let comparisons = tokens.split(is_and).map(|tokens| {
            let mut operators = tokens.iter().enumerate().filter_map(|(at, token)| match token {
                Token::Operator(operator) => Some((at, *operator)),
                _ => None,
            });
            let (Some((at, operator)), None) = (operators.next(), operators.next()) else {
                return Err(format!("expected {USAGE}, got `{text}`"));
            };
            // Bare text stands on the right of `=` and `!=` alone. Anywhere else it is most likely a misspelled name.
            let may_be_text = matches!(operator, Operator::Equal | Operator::NotEqual);
            let left = operand(&tokens[..at], known, false, text)?;
            let right = tokens[at + 1..].split(|token| *token == Token::Comma);
            let right: Vec<_> =
                right.map(|tokens| operand(tokens, known, may_be_text, text)).collect::<Result<_, _>>()?;
            if right.len() > 1 && !may_be_text {
                return Err(format!("expected one value after `{operator}` in `{text}`, got a list"));
            }
            let is_named = |side: &Operand| matches!(side, Operand::Named(..));
            if !is_named(&left) && !right.iter().any(is_named) {
                return Err(format!("expected the name of a setting or result in `{text}`, got none"));
            }
            Ok(Comparison { left, operator, right })
        });
        comparisons.collect::<Result<_, _>>().map(Self)
    }

    /// Returns the names of the settings and results in the condition.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let sides =
            self.0.iter().flat_map(|comparison| std::iter::once(&comparison.left).chain(&comparison.right));
        sides.filter_map(|side| match side {
            Operand::Named(name, _) => Some(&name[..]),
            Operand::Number(_) | Operand::Text(_) => None,
        })
    }

    /// Returns whether the condition holds for the values that `value` returns by name.
    pub fn holds<'a>(&'a self, value: &dyn Fn(&str) -> Option<Value<'a>>) -> bool {
        self.0.iter().all(|comparison| comparison.holds(value))
    }
}

impl Comparison {
    fn holds<'a>(&'a self, value: &dyn Fn(&str) -> Option<Value<'a>>) -> bool {
        let left = self.left.value(value);
        let order = |right: &'a Operand| {
            left.zip(right.value(value)).and_then(|(left, right)| match (left.number(), right.number()) {
                (Some(left), Some(right)) => left.partial_cmp(&right),
                _ => (left.text().is_some() && left.text() == right.text()).then_some(Ordering::Equal),
            })
        };
        let any =
            |holds: fn(Ordering) -> bool| self.right.iter().any(|right| order(right).is_some_and(holds));
        match self.operator {
            Operator::Equal => any(Ordering::is_eq),
            Operator::NotEqual => !any(Ordering::is_eq),
            Operator::Less => any(Ordering::is_lt),
            Operator::LessOrEqual => any(Ordering::is_le),
            Operator::Greater => any(Ordering::is_gt),
            Operator::GreaterOrEqual => any(Ordering::is_ge),
        }
    }
}

impl Operand {
    fn value<'a>(&'a self, value: &dyn Fn(&str) -> Option<Value<'a>>) -> Option<Value<'a>> {
        match self {
            Self::Number(number) => Some(Value::Number(*number)),
            Self::Text(text) => Some(Value::Text(text)),
            Self::Named(name, None) => value(name),
            Self::Named(name, Some(factor)) => Some(Value::Number(factor * value(name)?.number()?)),
        }
    }
}

/// Splits a condition at spaces, operators and `*`.
fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let length = if let quote @ ('\'' | '"') = first {
            let end = rest[1..]
                .find(quote)
                .ok_or_else(|| format!("expected a closing {quote} in `{text}`, got none"))?;
            tokens.push(Token::Quoted(rest[1..=end].to_owned()));
            end + 2
        } else if let Some((symbol, operator)) = OPERATORS.iter().find(|(symbol, _)| rest.starts_with(symbol))
        {
            tokens.push(Token::Operator(*operator));
            symbol.len()
        } else if let Some(sign) =
            [('*', Token::Times), (',', Token::Comma)].into_iter().find(|of| of.0 == first)
        {
            tokens.push(sign.1);
            1
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=!<>*,'\"".contains(c)).unwrap_or(rest.len());
            if end == 0 {
                return Err(format!("expected {USAGE}, got `{text}`"));
            }
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        };
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// Parses one side of a comparison.
fn operand(tokens: &[Token], known: &[&str], may_be_text: bool, text: &str) -> Result<Operand, String> {
    let unknown = |name: &str| {
        let near = nearest(name, known.iter().copied());
        format!("expected the name of a setting or result, got `{name}`{near}")
    };
    let named = |word: &str| known.contains(&word) || word.starts_with('_');
    match tokens {
        [Token::Quoted(text)] => Ok(Operand::Text(text.clone())),
        [Token::Word(word)] if named(word) => Ok(Operand::Named(word.clone(), None)),
        [Token::Word(word)] => match word.parse() {
            Ok(number) => Ok(Operand::Number(number)),
            Err(_) if may_be_text => Ok(Operand::Text(word.clone())),
            Err(_) => Err(unknown(word)),
        },
        [Token::Word(left), Token::Times, Token::Word(right)] => {
            let (factor, name) = if named(left) { (right, left) } else { (left, right) };
            let factor = factor
                .parse()
                .map_err(|_| format!("expected a number times a name in `{text}`, got `{left} * {right}`"))?;
            if !named(name) {
                return Err(unknown(name));
            }
            Ok(Operand::Named(name.clone(), Some(factor)))
        }
        _ => Err(format!("expected {USAGE}, got `{text}`")),
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        })
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(x) => write!(f, "{x}"),
            Self::Text(text) if text.contains('\'') => write!(f, "\"{text}\""),
            Self::Text(text) => write!(f, "'{text}'"),
            Self::Named(name, None) => f.write_str(name),
            Self::Named(name, Some(factor)) => write!(f, "{factor} * {name}"),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right: Vec<_> = self.right.iter().map(ToString::to_string).collect();
        write!(f, "{} {} {}", self.left, self.operator, right.join(", "))
    }
}

/// Formats the condition in one way, however it was typed. The identity of a run with a stop rule depends on this text.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comparisons: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&comparisons.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::{Condition, Value};

    const KNOWN: [&str; 5] = ["seed", "decay", "model", "loss", "loss_before"];

    fn parse(text: &str) -> Result<String, String> {
        Condition::parse(text, &KNOWN).map(|condition| condition.to_string())
    }

    fn holds(text: &str) -> bool {
        Condition::parse(text, &KNOWN).unwrap().holds(&|name| match name {
            "seed" => Some(Value::Text("3")),
            "decay" => Some(Value::Text("0.10")),
            "model" => Some(Value::Text("mlp")),
            "loss" => Some(Value::Number(0.5)),
            _ => None,
        })
    }

    #[test]
    fn one_spelling_of_each() {
        for (typed, expected) in [
            ("seed<3", "seed < 3"),
            ("decay==0.10 AND seed != 1", "decay = 0.1 and seed != 1"),
            ("loss_before > 10*loss", "loss_before > 10 * loss"),
            ("loss_before>=loss * 1e1", "loss_before >= 10 * loss"),
            ("model=mlp", "model = 'mlp'"),
            ("model = 'a and b'", "model = 'a and b'"),
            ("model = \"it's\"", "model = \"it's\""),
            ("3 <= seed", "3 <= seed"),
            ("model=mlp,linear", "model = 'mlp', 'linear'"),
            ("seed != 1, 2", "seed != 1, 2"),
        ] {
            assert_eq!(parse(typed).as_deref(), Ok(expected), "{typed}");
            assert_eq!(parse(expected).as_deref(), Ok(expected), "{typed} again");
        }
    }

    #[test]
    fn messages_name_what_is_wrong() {
        for (typed, expected) in [
            ("sed < 3", "expected the name of a setting or result, got `sed` (did you mean `seed`?)"),
            (
                "loss_befor > loss",
                "expected the name of a setting or result, got `loss_befor` (did you mean `loss_before`?)",
            ),
            ("loss > los", "expected the name of a setting or result, got `los` (did you mean `loss`?)"),
            ("1 < 2", "expected the name of a setting or result in `1 < 2`, got none"),
            ("loss > 10 * los", "expected the name of a setting or result, got `los` (did you mean `loss`?)"),
            ("loss > x * loss", "expected a number times a name in `loss > x * loss`, got `x * loss`"),
            ("model = 'mlp", "expected a closing ' in `model = 'mlp`, got none"),
            ("seed < 1, 2", "expected one value after `<` in `seed < 1, 2`, got a list"),
        ] {
            assert_eq!(parse(typed).unwrap_err(), expected, "{typed}");
        }
        for typed in [
            "",
            "seed",
            "seed <",
            "< 3",
            "seed < 3 and",
            "0 < seed < 3",
            "seed ! 3",
            "seed = a b",
            "* = 1",
            "seed = 1,",
        ] {
            assert!(parse(typed).unwrap_err().contains("a comparison such as `seed < 3`"), "{typed}");
        }
    }

    #[test]
    fn numbers_texts_and_absent_values() {
        for yes in [
            "seed = 3.0",
            "decay = 0.1",
            "decay <= 0.1 and seed > 2",
            "model = mlp",
            "model != linear",
            "model <= 'mlp'",
            "loss < 0.2 * seed",
            "loss_before != 1",
            "seed = 1, 3.0",
            "model = mlp, linear",
            "model != linear, swiglu",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in [
            "seed = 4",
            "seed > 2 and decay > 0.1",
            "model < 'mlp'",
            "model > 1",
            "loss_before = 1",
            "loss_before > 10 * loss",
            "loss > 2 * loss_before",
            "model = 3",
            "seed = 1, 2",
            "model != linear, mlp",
        ] {
            assert!(!holds(no), "{no}");
        }
        let of =
            |text: &str| Condition::parse(text, &KNOWN).unwrap().holds(&|_| Some(Value::Number(f64::NAN)));
        assert!(!of("loss = loss") && !of("loss > 1") && of("loss != 1"));
    }
}
