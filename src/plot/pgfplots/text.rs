//! Text and numbers in TeX syntax.

use crate::escape::for_figure;

/// TeX for characters outside ASCII and characters that TeX's original fonts lack.
const SIGNS: [(char, &str); 54] = [
    ('\\', "\\textbackslash{}"),
    ('~', "\\textasciitilde{}"),
    ('<', "$<$"),
    ('>', "$>$"),
    ('|', "$|$"),
    ('"', "''"),
    ('−', "$-$"),
    ('÷', "$\\div$"),
    ('·', "$\\cdot$"),
    ('×', "$\\times$"),
    ('±', "$\\pm$"),
    ('≤', "$\\le$"),
    ('≥', "$\\ge$"),
    ('∞', "$\\infty$"),
    ('√', "$\\surd$"),
    ('‖', "$\\|$"),
    ('–', "--"),
    ('—', "---"),
    ('‘', "`"),
    ('’', "'"),
    ('“', "``"),
    ('”', "''"),
    ('…', "\\ldots{}"),
    ('\u{a0}', "~"),
    ('α', "$\\alpha$"),
    ('β', "$\\beta$"),
    ('γ', "$\\gamma$"),
    ('δ', "$\\delta$"),
    ('ε', "$\\varepsilon$"),
    ('ζ', "$\\zeta$"),
    ('η', "$\\eta$"),
    ('θ', "$\\theta$"),
    ('ι', "$\\iota$"),
    ('κ', "$\\kappa$"),
    ('λ', "$\\lambda$"),
    ('μ', "$\\mu$"),
    ('µ', "$\\mu$"),
    ('ν', "$\\nu$"),
    ('ξ', "$\\xi$"),
    ('π', "$\\pi$"),
    ('ρ', "$\\rho$"),
    ('σ', "$\\sigma$"),
    ('τ', "$\\tau$"),
    ('φ', "$\\varphi$"),
    ('χ', "$\\chi$"),
    ('ψ', "$\\psi$"),
    ('ω', "$\\omega$"),
    ('Γ', "$\\Gamma$"),
    ('Δ', "$\\Delta$"),
    ('Θ', "$\\Theta$"),
    ('Λ', "$\\Lambda$"),
    ('Σ', "$\\Sigma$"),
    ('Ω', "$\\Omega$"),
    ('ℓ', "$\\ell$"),
];

/// Converts text of a figure to TeX and raises `^{…}`. Letters beyond Greek stay unchanged; pdfTeX sets only Latin ones.
pub fn tex(text: &str) -> String {
    let mut out = String::new();
    let text = for_figure(text);
    let mut rest = &text[..];
    while let Some(letter) = rest.chars().next() {
        if let Some((raised, after)) = rest.strip_prefix("^{").and_then(|inside| inside.split_once('}')) {
            out += "$^{";
            out += &signs(raised).replace('$', "");
            out += "}$";
            rest = after;
        } else if let Some(after) = rest.strip_prefix("‖g‖") {
            out += "$\\|g\\|$";
            rest = after;
        } else {
            out += &sign(letter);
            rest = &rest[letter.len_utf8()..];
        }
    }
    out
}

fn signs(text: &str) -> String {
    text.chars().map(sign).collect()
}

fn sign(letter: char) -> String {
    if let Some((_, sign)) = SIGNS.iter().find(|(other, _)| *other == letter) {
        return (*sign).to_owned();
    }
    match letter {
        '{' | '}' | '$' | '&' | '#' | '%' | '_' => format!("\\{letter}"),
        '^' => "\\textasciicircum{}".to_owned(),
        letter => letter.to_string(),
    }
}

/// Formats a number so that it reads back as the same float, or as `nan` if it is not finite.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "nan".to_owned();
    }
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Formats ten to this power, also beyond the range of floats.
pub fn power(exponent: f64) -> String {
    let whole = exponent.floor();
    format!("{}e{whole}", number((10f64.powf(exponent - whole) * 1e9).round() / 1e9))
}

#[cfg(test)]
mod tests {
    use super::{number, power, tex};

    #[test]
    fn names_are_escaped() {
        assert_eq!(tex("a_b 50% #1 & $2 {x}"), "a\\_b 50\\% \\#1 \\& \\$2 \\{x\\}");
        assert_eq!(tex("\\input~^"), "\\textbackslash{}input\\textasciitilde{}\\textasciicircum{}");
        assert_eq!(tex("1.26·10^{−4}"), "1.26$\\cdot$10$^{-4}$");
        assert_eq!(tex("surprise ‖g‖"), "surprise $\\|g\\|$");
        assert_eq!(tex("θ = 0.1, a < b"), "$\\theta$ = 0.1, a $<$ b");
        assert_eq!(tex("10^{"), "10\\textasciicircum{}\\{");
        assert_eq!(tex("two\nlines"), "two\\textbackslash{}x0alines");
    }

    #[test]
    fn numbers() {
        assert_eq!([number(2.0), number(0.1), number(1e-7), number(f64::NAN)], ["2", "0.1", "1e-7", "nan"]);
        assert_eq!([power(2.0), power(-0.5), power(400.0)], ["1e2", "3.16227766e-1", "1e400"]);
    }
}
