"""The report's style sheet: warm paper, one accent, figures in tabular numerals; light and dark; one column on a phone."""

CSS = """
:root{color-scheme:light dark;--paper:#faf9f6;--card:#fff;--ink:#22262b;--soft:#6a6f76;--rule:#e6e3dc;--grid:#efece5;
--accent:#0e766e;--second:#c07a3e;--before:#8f8a82;--up:#0e766e;--down:#b4472f;--tip:#22262b;--tipink:#faf9f6;
--t0:#0e766e;--t1:#7fb8a4;--t2:#e0b06c;--t3:#b9694a;--note:#fdf6e7;--noterule:#ead9b0;
--serif:"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua",Georgia,"DejaVu Serif",serif;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media (prefers-color-scheme:dark){:root{--paper:#15171a;--card:#1c1f23;--ink:#e7e5e0;--soft:#9a9c9f;--rule:#2d3136;--grid:#272b30;
--accent:#4fbfae;--second:#dd9c63;--before:#8b8a86;--up:#4fbfae;--down:#e58368;--tip:#e7e5e0;--tipink:#15171a;
--t0:#3fa595;--t1:#2b6f66;--t2:#c99b58;--t3:#a25f45;--note:#262218;--noterule:#4a4029}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 var(--sans);font-variant-numeric:tabular-nums;
-webkit-text-size-adjust:100%;overflow-wrap:anywhere;overflow-x:clip}
main{max-width:1160px;margin:0 auto;padding:56px 32px 72px}
h1,h2{font-family:var(--serif);font-weight:500;letter-spacing:-.01em;line-height:1.15;margin:0}
h1{font-size:40px}h2{font-size:25px;margin:64px 0 6px}
.over{margin:0 0 10px;color:var(--soft);font-size:13px;letter-spacing:.02em}
.lead,.sub{color:var(--soft);margin:0;max-width:68ch}.sub{margin-bottom:22px}
.lead{margin-top:12px;font-size:17px;color:var(--ink)}
.facts{display:flex;flex-wrap:wrap;gap:6px 28px;margin:26px 0 0;padding:0;list-style:none;color:var(--soft);font-size:14px}
.facts b{color:var(--ink);font-weight:500}
.notes{margin:28px 0 0;padding:14px 18px 14px 34px;background:var(--note);border:1px solid var(--noterule);border-radius:10px;font-size:14px}
.hero{display:grid;grid-template-columns:auto auto auto 1fr;gap:0 36px;align-items:end;margin-top:36px;padding:30px 34px 28px;
background:var(--card);border:1px solid var(--rule);border-radius:16px}
.hero .big{font:500 58px/1 var(--serif);letter-spacing:-.02em;font-variant-numeric:lining-nums tabular-nums}
.hero small{display:block;color:var(--soft);font-size:13px;margin-bottom:10px}.hero .ci{display:block;color:var(--soft);font-size:13px;margin-top:10px}
.hero .arrow{font:400 34px/1.5 var(--serif);color:var(--before);padding-bottom:22px}
.hero .after .big{color:var(--accent)}.hero .was .big{color:var(--before)}
.hero .gain{justify-self:end;text-align:right}.hero .gain .big{font-size:36px;line-height:1.3}
.hero .range{grid-column:1/-1;margin-top:22px;height:42px}
.up{color:var(--up)}.down{color:var(--down)}.same{color:var(--soft)}
.range{position:relative;height:34px}.range .axis{position:absolute;left:0;right:0;top:22px;border-top:1px solid var(--rule)}
.range .tick{position:absolute;top:26px;white-space:nowrap;transform:translateX(-50%);font-size:11px;color:var(--soft)}
.range .tick.last{transform:translateX(-100%)}
.bar{position:absolute;top:20px;height:5px;border-radius:2px;opacity:.32}.bar.before{background:var(--before)}.bar.after{background:var(--accent)}
.dot{position:absolute;top:16px;width:13px;height:13px;margin-left:-6.5px;border-radius:50%;border:2px solid var(--card)}
.dot.before{background:var(--before)}.dot.after{background:var(--accent)}
.charts{display:grid;grid-template-columns:repeat(6,minmax(0,1fr));gap:16px}
.chart{grid-column:span 2;margin:0;padding:18px 20px 14px;background:var(--card);border:1px solid var(--rule);border-radius:14px;min-width:0}
.chart.wide{grid-column:span 3}
.chart figcaption{display:flex;justify-content:space-between;gap:12px;align-items:baseline;font-size:15px}
.chart figcaption b{font-weight:600}.chart .now{font-size:15px;color:var(--soft)}
.chart .unit,.chart .xname{font-size:11px;color:var(--soft)}.chart .unit{margin:2px 0 8px}.chart .xname{text-align:right;margin-top:2px}
.plot{position:relative;height:150px;margin-left:46px}.wide .plot{height:210px}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot path{vector-effect:non-scaling-stroke;fill:none;stroke-linejoin:round;stroke-linecap:round}
.grid{stroke:var(--grid);stroke-width:1}.line{stroke-width:2}.level{stroke-width:1.3;stroke-dasharray:4 5}
.dots{stroke-width:7}.whisker{stroke-width:1.5;opacity:.45}.plot path.band{stroke:none;opacity:.14}.plot path.fill{stroke:var(--card);stroke-width:.8}
path.accent{stroke:var(--accent)}path.second{stroke:var(--second)}path.before{stroke:var(--before)}
path.second.line{stroke-width:1.4}
.plot path.band.accent{fill:var(--accent)}.plot path.band.second{fill:var(--second)}
.plot path.t0{fill:var(--t0)}.plot path.t1{fill:var(--t1)}.plot path.t2{fill:var(--t2)}.plot path.t3{fill:var(--t3)}
.ys span{position:absolute;right:calc(100% + 9px);transform:translateY(-50%);font-size:11px;color:var(--soft);white-space:nowrap}
.xs{position:relative;height:16px;margin:6px 0 0 46px}.xs span{position:absolute;transform:translateX(-50%);font-size:11px;color:var(--soft)}
.hits{position:absolute;inset:0}.hits>div{position:absolute;top:0;bottom:0}.hits u,.hits i,.tip{display:none;position:absolute;pointer-events:none}
.hits>div:hover>*{display:block}.hits u{top:0;bottom:0;border-left:1px solid var(--soft);opacity:.5}
.hits i{width:9px;height:9px;margin:-4.5px 0 0 -4.5px;border-radius:50%;border:2px solid var(--card)}
.hits i.accent,.key.accent{background:var(--accent)}.hits i.second,.key.second{background:var(--second)}.hits i.ink{background:var(--ink)}
.hits i.before,.key.before{background:var(--before)}.key.t0{background:var(--t0)}.key.t1{background:var(--t1)}.key.t2{background:var(--t2)}.key.t3{background:var(--t3)}
.chart .tip{top:4px;left:calc(var(--at) + 10px);margin:0;padding:7px 10px;border-radius:7px;background:var(--tip);color:var(--tipink);
font-size:12px;line-height:1.45;white-space:nowrap;z-index:2}.chart .tip.r{left:auto;right:calc(100% - var(--at) + 10px)}.tip span{display:block;opacity:.86}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:8px 0 0;padding:0;list-style:none;font-size:12px;color:var(--soft)}
.key{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:7px;vertical-align:middle}
.key.dash{background:repeating-linear-gradient(90deg,var(--before) 0 4px,transparent 4px 7px)}.key.dash.accent{background:repeating-linear-gradient(90deg,var(--accent) 0 4px,transparent 4px 7px)}
.chart>p{margin:8px 0 0;font-size:12px;color:var(--soft)}
.prompts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:16px}
.prompt{padding:18px 20px 20px;background:var(--card);border:1px solid var(--rule);border-radius:14px;min-width:0;display:flex;flex-direction:column}
.prompt h3{font:500 16px/1.35 var(--serif);margin:0 0 2px}.prompt .task{font-size:12px;color:var(--soft);margin:0 0 14px}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:20px;margin-top:auto}.side>header{display:flex;justify-content:space-between;font-size:12px;color:var(--soft);margin-bottom:6px}
.side.after>header{color:var(--accent)}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(56px,1fr));gap:8px}
.tiles figure{margin:0;min-width:0}.tiles img,.gone{display:block;width:100%;aspect-ratio:1;object-fit:cover;border-radius:7px;background:var(--grid)}
img.tiny{image-rendering:pixelated}.gone{display:grid;place-items:center;font-size:11px;color:var(--soft)}
.tiles figcaption{font-size:11px;color:var(--soft);text-align:center;margin-top:3px}.tiles figcaption.up,.tiles figcaption.down{font-weight:600}
.tiles figcaption.up{color:var(--up)}.tiles figcaption.down{color:var(--down)}
.sheets{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:16px}
.sheets figure{margin:0}.sheets img{display:block;width:100%;border-radius:10px;border:1px solid var(--rule)}.sheets figcaption{font-size:13px;color:var(--soft);margin-top:6px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:14px;padding:8px 22px}
table{border-collapse:collapse;width:100%;font-size:14px}th{font-weight:400;color:var(--soft);font-size:12px;text-align:right}
th,td{padding:11px 0 11px 20px;border-top:1px solid var(--rule);text-align:right;vertical-align:middle}tr:first-child>*{border-top:0}
th:first-child,td:first-child{text-align:left;padding-left:0}td small{display:block;color:var(--soft);font-size:11.5px;white-space:nowrap}
td.spark{width:34%}th.spark span{float:left}td.spark .range{height:13px}td.spark .axis{top:6px}td.spark .bar{top:4px}td.spark .dot{top:0}td.total,tr.total td{font-weight:600}tr.total td small{font-weight:400}
.configs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:16px}
.config{background:var(--card);border:1px solid var(--rule);border-radius:14px;padding:16px 20px;min-width:0}
.config h3{margin:0 0 8px;font:600 14px/1.4 var(--sans)}dl{margin:0;display:grid;grid-template-columns:minmax(0,auto) minmax(0,1fr);gap:3px 16px;font-size:13px}
dt{color:var(--soft)}dd{margin:0;text-align:right;font-family:var(--mono);font-size:12px;line-height:1.65}
footer{margin-top:64px;padding-top:18px;border-top:1px solid var(--rule);color:var(--soft);font-size:13px}code{font-family:var(--mono);font-size:.92em}
@media (max-width:980px){.chart{grid-column:span 3}.chart.wide{grid-column:span 6}}
@media (max-width:680px){main{padding:32px 16px 48px}h1{font-size:30px}h2{font-size:22px;margin-top:48px}.chart,.chart.wide{grid-column:1/-1;padding:16px}
.wide .plot{height:180px}.hero{grid-template-columns:auto auto auto;gap:0 16px;padding:22px 20px;justify-content:space-between}.hero .big{font-size:40px}
.hero .arrow{font-size:24px}.hero .gain{grid-column:1/-1;justify-self:start;text-align:left;margin-top:20px}.hero .ci{font-size:12px}
.chart .tip{max-width:150px;white-space:normal}.card{padding:4px 16px}th,td{padding-left:10px}td.spark,th.spark{display:none}td small{font-size:11px;white-space:normal}}
@media (prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
@media print{main{padding:0}.chart,.prompt,.config{break-inside:avoid}}
"""
