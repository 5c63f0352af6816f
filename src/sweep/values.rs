//! Values of a key as typed: lists `a,b,c` and named ranges of numbers.

use toml::Value;

/// Maximum number of values of one key, equal to the maximum number of rows of a sweep.
pub(super) const MAX_VALUES: usize = 1 << 16;

/// Parses a comma-separated list. Each item is a number, true or false, a named range, or text. Text is quoted if it holds a
/// comma or could be read as another kind.
pub(super) fn list(text: &str) -> Result<Vec<Value>, String> {
    let mut values = Vec::new();
    for item in split(text) {
        let item = item.trim();
        match (item, range(item)) {
            ("", _) => return Err("an empty item".into()),
            (_, Some(range)) => values.extend(range?),
            (_, None) => values.push(scalar(item)),
        }
        if values.len() > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES}"));
        }
    }
    Ok(values)
}

/// Splits text at commas outside quotes and parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut start, mut items) = (0_usize, None, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items
}

fn scalar(item: &str) -> Value {
    let quoted = ['\'', '"']
        .iter()
        .find_map(|&quote| item.strip_prefix(quote)?.strip_suffix(quote).map(str::to_owned));
    if let Some(text) = quoted {
        return Value::String(text);
    }
    // An integer too large for TOML, such as a seed or a note, keeps its digits as text.
    let digits = item.strip_prefix(['+', '-']).unwrap_or(item);
    if digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() && item.parse::<i64>().is_err()
    {
        return Value::String(item.strip_prefix('+').unwrap_or(item).to_owned());
    }
    // The parser of f64 also accepts words such as inf.
    let number = item.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    match (item, item.parse(), item.parse()) {
        ("true" | "false", ..) => Value::Boolean(item == "true"),
        (_, Ok(whole), _) => Value::Integer(whole),
        (_, _, Ok(real)) if number => Value::Float(real),
        _ => Value::String(item.to_owned()),
    }
}

/// Expands `range(a, b[, step])`, `linspace(lo, hi, n)` or `logspace(lo, hi, n)`; `None` for any other text.
pub(super) fn range(item: &str) -> Option<Result<Vec<Value>, String>> {
    let (name, arguments) = item.strip_suffix(')')?.split_once('(')?;
    let arguments: Vec<Value> = arguments.split(',').map(|argument| scalar(argument.trim())).collect();
    let whole: Option<Vec<i64>> = arguments.iter().map(Value::as_integer).collect();
    let real = |value: &Value| value.as_float().or(value.as_integer().map(|whole| whole as f64));
    let numbers: Option<Vec<f64>> = arguments.iter().map(real).collect();
    let finite = numbers.filter(|numbers| numbers.iter().all(|number| number.is_finite()));
    let usage = match name.trim() {
        "range" => "range(start, end) or range(start, end, step), which exclude the end",
        "linspace" => "linspace(first, last, count)",
        "logspace" => "logspace(first, last, count), with values above 0 instead of their logarithms",
        _ => return None,
    };
    let values = match (name.trim(), finite.as_deref(), whole.as_deref()) {
        ("range", _, Some(&[start, end])) => whole_steps(start, end, 1),
        ("range", _, Some(&[start, end, step])) => whole_steps(start, end, step),
        ("range", Some(&[start, end]), None) => steps(start, end, 1.0),
        ("range", Some(&[start, end, step]), None) => steps(start, end, step),
        ("linspace", Some(&[first, last, count]), _) => spaced(count, |t| {
            let span = last - first;
            // If the span exceeds the range of floats, its ends are weighted instead.
            match t < 1.0 {
                true if span.is_finite() => first + span * t,
                true => first * (1.0 - t) + last * t,
                false => last,
            }
        }),
        ("logspace", Some(&[first, last, count]), _) if first > 0.0 && last > 0.0 => spaced(count, |t| {
            let span = last / first;
            match t < 1.0 {
                true if span.is_finite() && span > 0.0 => first * span.powf(t),
                true => (first.ln() * (1.0 - t) + last.ln() * t).exp(),
                false => last,
            }
        }),
        _ => None,
    };
    Some(match values {
        Some(values) => Ok(values),
        None => Err(format!("{item}, which has no values (usage: {usage})")),
    })
}

/// Returns the integers of a range. They are never rounded, unlike floats beyond 2^53.
fn whole_steps(start: i64, end: i64, step: i64) -> Option<Vec<Value>> {
    let (start, end, step) = (i128::from(start), i128::from(end), i128::from(step));
    let span = (end - start) * step.signum();
    let count = usize::try_from((span + step.abs() - 1).checked_div(step.abs())?).ok()?;
    let value = |i: usize| i64::try_from(start + i as i128 * step).ok().map(Value::Integer);
    if (1..=MAX_VALUES).contains(&count) { (0..count).map(value).collect() } else { None }
}

fn steps(start: f64, end: f64, step: f64) -> Option<Vec<Value>> {
    // The end is excluded, even if steps miss it in binary: (1.3 − 1) ÷ 0.1 is slightly above 3.
    let count = ((end - start) / step - 1e-9).ceil();
    // Also covers a step of 0, where the count is infinite or NaN.
    if !(count >= 1.0 && count <= MAX_VALUES as f64) {
        return None;
    }
    let value = |i: i64| start + i as f64 * step;
    Some((0..count as i64).map(|i| Value::Float(rounded(value(i)))).collect())
}

/// Returns the values at `count` equally spaced points from 0 to 1.
fn spaced(count: f64, value: impl Fn(f64) -> f64) -> Option<Vec<Value>> {
    let fits = count.fract() == 0.0 && count >= 1.0 && count <= MAX_VALUES as f64;
    let last = (count - 1.0).max(1.0);
    fits.then(|| (0..count as i64).map(|i| Value::Float(rounded(value(i as f64 / last)))).collect())
}

/// Rounds to twelve digits, so that steps of 0.1 look exact and machines agree.
fn rounded(x: f64) -> f64 {
    format!("{x:.11e}").parse().expect("a number")
}

/// Formats a number with as few digits as possible without losing precision.
pub(super) fn number(x: f64) -> String {
    let text = format!("{x:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Formats a value as a cell of results.csv.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(x) => number(*x),
        Value::Integer(x) => x.to_string(),
        Value::Boolean(x) => x.to_string(),
        _ => unreachable!("no setting is a list, a table or a date"),
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_VALUES, Value, list, text};

    fn texts(list_of: &str) -> Vec<String> {
        list(list_of).unwrap().iter().map(text).collect()
    }

    #[test]
    fn lists_and_ranges() {
        for (typed, expected) in [
            ("16", "16"),
            ("0.1,learned,1e-6", "0.1 learned 1e-6"),
            ("true,false", "true false"),
            ("range(0,5)", "0 1 2 3 4"),
            ("range(0, 10, 4)", "0 4 8"),
            ("range(3,0,-1)", "3 2 1"),
            ("range(0,0.3,0.1)", "0 0.1 0.2"),
            ("range(1,1.3,0.1)", "1 1.1 1.2"),
            ("range(0.3,0,-0.1)", "0.3 0.2 0.1"),
            ("linspace(0,1,5)", "0 0.25 0.5 0.75 1"),
            ("linspace(0.1,0.7,3)", "0.1 0.4 0.7"),
            ("logspace(1e-3,1,4)", "0.001 0.01 0.1 1"),
            ("logspace(2,256,8)", "2 4 8 16 32 64 128 256"),
            ("logspace(1,1e-5,2),7", "1 1e-5 7"),
            ("linspace(3,9,1)", "3"),
            ("a.npy,'b,c.npy',\"12\"", "a.npy b,c.npy 12"),
            ("inf,nan", "inf nan"),
            (
                "range(9007199254740993,9007199254740996)",
                "9007199254740993 9007199254740994 9007199254740995",
            ),
            (
                "range(-9223372036854775808,9223372036854775807,9223372036854775807)",
                "-9223372036854775808 -1 9223372036854775806",
            ),
            ("range(10,0,-5)", "10 5"),
            ("18446744073709551615,+9223372036854775808", "18446744073709551615 9223372036854775808"),
            ("linspace(-1.7e308,1.7e308,3)", "-1.7e308 0 1.7e308"),
            ("logspace(1e-308,1e308,3)", "1e-308 1 1e308"),
            ("logspace(1e308,1e-308,3)", "1e308 1 1e-308"),
            ("logspace(3,3,2)", "3 3"),
            ("linspace(7,2,2)", "7 2"),
            ("range(0.5,2.5)", "0.5 1.5"),
            ("(a,b),f(c,d),'(,'", "(a,b) f(c,d) (,"),
            ("a),b", "a) b"),
            ("'a\",b',\"c',d\"", "a\",b c',d"),
            ("-5,+5,-0.5,+1e2,.5", "-5 5 -0.5 100 0.5"),
        ] {
            assert_eq!(texts(typed), expected.split(' ').collect::<Vec<_>>(), "{typed}");
        }
    }

    #[test]
    fn true_and_false_are_booleans() {
        let expected = [Value::Boolean(true), Value::Boolean(false), Value::String("True".to_owned())];
        assert_eq!(list("true,false,True").unwrap(), expected);
    }

    #[test]
    fn empty_values_are_rejected() {
        for typed in [
            "",
            "1,,2",
            "range(5,0)",
            "range(0,5,-1)",
            "range(0,65537)",
            "range(-9223372036854775808,9223372036854775807)",
            "range(0,5,0)",
            "range(5)",
            "range(a,b)",
            "range(0,1e300)",
            "linspace(0,1)",
            "linspace(0,1,0)",
            "linspace(0,1,2.5)",
            "logspace(-3,0,4)",
            "logspace(0,1,4)",
            "logspace(1,0,4)",
        ] {
            assert!(list(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn as_many_values_as_rows() {
        for most in ["0,".repeat(MAX_VALUES - 1) + "0", format!("range(1,{MAX_VALUES}),0")] {
            assert_eq!(list(&most).unwrap().len(), MAX_VALUES);
            assert_eq!(list(&(most + ",0")).unwrap_err(), "more than 65536");
        }
    }
}
