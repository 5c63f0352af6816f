//! A build with PDF and PNG: usvg reads the SVG, with the fonts of this crate alone; krilla writes the PDF, resvg draws the
//! PNG. Neither takes anything from the machine: the bytes depend on the SVG alone.

use krilla::page::PageSettings;
use krilla_svg::{SurfaceExt, SvgSettings};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use crate::error::{Error, Result};
use crate::plot::font;

/// Pixels an inch, and a metre.
const DPI: f32 = 600.0;
const DPM: u32 = 23_622;
/// Most pixels of a PNG, four bytes each and as many again while it is written: 19 inches squared.
const MAX_PIXELS: u64 = 1 << 27;

#[expect(clippy::unnecessary_wraps, reason = "the twin refuses")]
pub fn check() -> Result<()> {
    Ok(())
}

pub fn pdf(svg: &str) -> Result<Vec<u8>> {
    let tree = tree(svg)?;
    let mut document = krilla::Document::new_with(krilla::SerializeSettings {
        // Nothing to navigate, and no dates.
        enable_tagging: false,
        ..Default::default()
    });
    // usvg's lengths are CSS pixels: 96 an inch.
    let points = |pixels: f32| pixels * 0.75;
    let size = krilla::geom::Size::from_wh(points(tree.size().width()), points(tree.size().height()));
    let size = size.ok_or_else(|| rejected("a page", "one without area"))?;
    let page =
        PageSettings::from_wh(size.width(), size.height()).ok_or_else(|| rejected("a page", "none"))?;
    let mut page = document.start_page_with(page);
    let mut surface = page.surface();
    surface.draw_svg(&tree, size, SvgSettings::default());
    surface.finish();
    page.finish();
    document.finish().map_err(|error| rejected("a PDF", format!("{error:?}")))
}

pub fn png(svg: &str) -> Result<Vec<u8>> {
    let tree = tree(svg)?;
    let scale = DPI / 96.0;
    let pixels = |length: f32| ((length * scale).round() as i32).unsigned_abs().max(1);
    let (width, height) = (pixels(tree.size().width()), pixels(tree.size().height()));
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let expected = format!("pdf or svg for a figure of over {MAX_PIXELS} pixels");
        return Err(rejected(&expected, format!("png of {width} × {height}")));
    }
    let pixmap = Pixmap::new(width, height);
    let mut pixmap = pixmap.ok_or_else(|| rejected("an image that fits memory", "a larger one"))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, pixmap.width(), pixmap.height());
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let unit = png::Unit::Meter;
    encoder.set_pixel_dims(Some(png::PixelDimensions { xppu: DPM, yppu: DPM, unit }));
    let written = encoder.write_header().and_then(|mut writer| {
        // The paper is opaque: premultiplied and plain colours are the same.
        writer.write_image_data(pixmap.data())?;
        writer.finish()
    });
    written.map_err(|error| rejected("a PNG", error.to_string()))?;
    Ok(bytes)
}

fn tree(svg: &str) -> Result<Tree> {
    let mut options = Options { font_family: font::FAMILY.to_owned(), ..Options::default() };
    for face in font::FILES {
        options.fontdb_mut().load_font_data(face.to_vec());
    }
    Tree::from_str(svg, &options).map_err(|error| rejected("an SVG", error.to_string()))
}

fn rejected(expected: &str, got: impl Into<String>) -> Error {
    Error::setting("--figure-format", expected, got)
}
