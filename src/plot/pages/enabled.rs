//! A build with PDF and PNG. usvg reads the SVG with this crate's fonts only, krilla writes the PDF and resvg draws the
//! PNG. Nothing comes from the machine, so the bytes depend only on the SVG.

use krilla::metadata::Metadata;
use krilla::page::PageSettings;
use krilla_svg::{SurfaceExt, SvgSettings};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use crate::error::{Error, Result};
use crate::plot::font;

/// Pixels per inch; below, per metre.
const DPI: f32 = 600.0;
const DPM: u32 = 23_622;
/// Most pixels of a PNG, 19 inches squared. Each takes four bytes, and four more while the file is written.
const MAX_PIXELS: u64 = 1 << 27;

#[expect(clippy::unnecessary_wraps, reason = "the version without the feature returns an error")]
pub fn check() -> Result<()> {
    Ok(())
}

/// Converts an SVG. `title` and `origin`, the command that drew it, become the document's metadata.
pub fn pdf(svg: &str, title: Option<&str>, origin: Option<&str>) -> Result<Vec<u8>> {
    let tree = tree(svg)?;
    let mut document = krilla::Document::new_with(krilla::SerializeSettings {
        // A figure has nothing to navigate, and dates would change the bytes.
        enable_tagging: false,
        ..Default::default()
    });
    let mut metadata = Metadata::new().creator(format!("nmem {}", env!("CARGO_PKG_VERSION")));
    if let Some(title) = title {
        metadata = metadata.title(title.to_owned());
    }
    if let Some(origin) = origin {
        metadata = metadata.description(origin.to_owned());
    }
    document.set_metadata(metadata);
    // usvg's lengths are CSS pixels, 96 per inch.
    let points = |pixels: f32| pixels * 0.75;
    let size = krilla::geom::Size::from_wh(points(tree.size().width()), points(tree.size().height()));
    let size = size.ok_or_else(|| failed("PDF", "the page has no area"))?;
    let page = PageSettings::from_wh(size.width(), size.height())
        .ok_or_else(|| failed("PDF", "the page has no area"))?;
    let mut page = document.start_page_with(page);
    let mut surface = page.surface();
    surface.draw_svg(&tree, size, SvgSettings::default());
    surface.finish();
    page.finish();
    document.finish().map_err(|error| failed("PDF", format!("{error:?}")))
}

pub fn png(svg: &str) -> Result<Vec<u8>> {
    let tree = tree(svg)?;
    let scale = DPI / 96.0;
    let pixels = |length: f32| ((length * scale).round() as i32).unsigned_abs().max(1);
    let (width, height) = (pixels(tree.size().width()), pixels(tree.size().height()));
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let reason = format!("a png of {width} × {height} exceeds {MAX_PIXELS} pixels; choose svg or pdf");
        return Err(Error::rejected("--figure-format", reason));
    }
    let pixmap = Pixmap::new(width, height);
    let mut pixmap = pixmap.ok_or_else(|| failed("PNG", "the image does not fit in memory"))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, pixmap.width(), pixmap.height());
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let unit = png::Unit::Meter;
    encoder.set_pixel_dims(Some(png::PixelDimensions { xppu: DPM, yppu: DPM, unit }));
    let written = encoder.write_header().and_then(|mut writer| {
        // The paper is opaque, so premultiplied and plain colours are the same.
        writer.write_image_data(pixmap.data())?;
        writer.finish()
    });
    written.map_err(|error| failed("PNG", error.to_string()))?;
    Ok(bytes)
}

fn tree(svg: &str) -> Result<Tree> {
    let mut options = Options { font_family: font::FAMILY.to_owned(), ..Options::default() };
    for face in font::FILES {
        options.fontdb_mut().load_font_data(face.to_vec());
    }
    Tree::from_str(svg, &options)
        .map_err(|error| failed("PDF or PNG", format!("its SVG is invalid: {error}")))
}

fn failed(format: &str, reason: impl std::fmt::Display) -> Error {
    Error::rejected("--figure-format", format!("cannot write {format}: {reason}; choose svg"))
}
